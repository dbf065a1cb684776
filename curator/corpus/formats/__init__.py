"""Chat files of the formats that fine-tuners use, as canonical rows in flat memory (docs/formats.md).

JSON Lines, a JSON array (or objects one after another), Parquet, Arrow and CSV, plain or packed with gzip or
Zstandard, and saved folders and hub ids of Hugging Face `datasets`; in the layouts messages, ShareGPT, Alpaca and
prompt/completion. Container and layout are detected and can be named instead.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from curator.corpus.formats.budget import MAX_ROW_BYTES, value_problem
from curator.corpus.formats.columnar import count_parquet, read_arrow, read_parquet
from curator.corpus.formats.compression import BUFFER_BYTES, DamagedPackError, unpacked
from curator.corpus.formats.csv_rows import read_csv
from curator.corpus.formats.detect import detect_file
from curator.corpus.formats.json_records import read_json, read_jsonl
from curator.corpus.formats.record import read_plain, read_record
from curator.corpus.formats.rows import (
    CODES,
    CONTAINERS,
    LABELS,
    LAYOUTS,
    Container,
    Detected,
    Layout,
    Problem,
    Raw,
    Reject,
    Row,
)
from curator.corpus.formats.sources import Located, locate
from curator.errors import BadInputError, BadRowsError, MissingError, TooManyRowsError
from curator.messages import dump_messages

__all__ = [
    "CODES",
    "CONTAINERS",
    "DEFAULT_LIMITS",
    "LABELS",
    "LAYOUTS",
    "MAX_LISTED_REJECTS",
    "MAX_ROW_BYTES",
    "Container",
    "Detected",
    "Layout",
    "Located",
    "Problem",
    "ReadLimits",
    "Reject",
    "Row",
    "count_parquet",
    "detect",
    "locate",
    "open_chat_file",
    "read_rows",
    "read_values",
    "source_name",
]

Source = str | Path | BinaryIO
MAX_LISTED_REJECTS = 1_000  # bad records that an error or a report names


@dataclass(frozen=True)
class ReadLimits:
    """Bounds on a user's data: bytes that a packed file may unpack to, records (bad ones too), bytes of one record.

    Where records are bounded, `max_mostly_bad` bounds the bad ones as long as most of those read are bad.
    """

    max_unpacked_bytes: int | None = None
    max_records: int | None = None
    max_row_bytes: int = MAX_ROW_BYTES
    max_mostly_bad: int = 10_000


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True)
class _Reading:
    """How files are read: detected where it is None."""

    container: Container | None
    layout: Layout | None
    columns: Mapping[str, str]
    limits: ReadLimits


def detect(source: Source, *, name: str | None = None) -> Detected:
    """Container and layout of a file; raises BadInputError where neither its bytes nor its name tell."""
    with open_chat_file(source) as file:
        return detect_file(file, name or source_name(source))


def read_rows(
    source: Source,
    *,
    format: Container | None = None,  # noqa: A002 - the word of the command line
    layout: Layout | None = None,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[Row | Reject]:
    """The records of a data set (path, hub id or seekable binary file), in order: a Row, else a Reject with reasons.

    `format` and `layout` override detection (without `layout` each record is read as the one it shows); `columns` names
    the fields of labels (or `source`) that have other names, by label. Memory is one record; one of more bytes than
    `limits` allow, or over the bounds of `budget`, is a Reject before it is built. Raises BadInputError when the data
    set as a whole cannot be read, UnpackedTooLargeError when compression hides more than the limit, TooManyRowsError at
    the first record past it, bad ones counted too, and BadRowsError after the first bad one past `max_mostly_bad`.
    """
    reading = _Reading(format, layout, columns or {}, limits)
    if isinstance(source, str | Path):
        return _bounded(_read_files(source, reading), limits)
    return _bounded(_read_file(source, reading, name or source_name(source)), limits)


def _read_files(source: str | Path, reading: _Reading) -> Iterator[Row | Reject]:
    located, done = locate(source), 0
    reading = replace(reading, container=located.container or reading.container)
    for path in located.files:
        with open_chat_file(path) as file:
            for item in _read_file(file, reading, path.name, done):
                done = item.record
                yield item


def read_values(
    values: Iterable[object], *, layout: Layout | None = None, limits: ReadLimits = DEFAULT_LIMITS
) -> Iterator[Row | Reject]:
    """The same for records that are decoded already, such as the rows of a JSON request."""
    raws = (
        Raw(record, value=value, problem=value_problem(value, limits.max_row_bytes))
        for record, value in enumerate(values, start=1)
    )
    return _bounded((_row(raw, layout, {}) for raw in raws), limits)


def _bounded(items: Iterator[Row | Reject], limits: ReadLimits) -> Iterator[Row | Reject]:
    """The records in order. With a bound reading also stops where most of many are bad: a small file of a million bad
    records would take a minute."""
    if limits.max_records is None:
        yield from items
        return
    rejects: list[Reject] = []
    n_bad = 0
    for n_records, item in enumerate(items, start=1):
        if n_records > limits.max_records:
            most = limits.max_records
            raise TooManyRowsError(f"the data set has more than {most} rows, which is the bound: split it")
        yield item
        if isinstance(item, Reject):
            n_bad += 1
            if n_bad <= MAX_LISTED_REJECTS:
                rejects.append(item)
            if n_bad > max(limits.max_mostly_bad, n_records // 2):
                raise BadRowsError(
                    f"{n_bad} of the first {n_records} rows are bad, and the rest was not read: mend the file",
                    details=[problem for reject in rejects for problem in reject.as_dicts()],
                )


@contextmanager
def open_chat_file(source: Source) -> Iterator[BinaryIO]:
    """A path opened for reading, or the open file itself at its start; raises MissingError or BadInputError."""
    if not isinstance(source, str | Path):
        if not source.seekable():
            raise BadInputError("a chat file must be seekable: save the stream to a file first")
        source.seek(0)
        yield source
        return
    try:
        file = Path(source).open("rb", BUFFER_BYTES)  # noqa: SIM115 - errors while opening differ from those while reading
    except FileNotFoundError as error:
        raise MissingError(f"there is no file {source}") from error
    except OSError as error:
        raise BadInputError(f"{source} cannot be read: {error.strerror}") from error
    with file:
        yield file


def source_name(source: Source) -> str:
    """The file's own name, without its folder."""
    return Path(source).name if isinstance(source, str | Path) else Path(str(getattr(source, "name", "upload"))).name


def _read_file(source: BinaryIO, reading: _Reading, name: str, n_before: int = 0) -> Iterator[Row | Reject]:
    """One file's records; their numbers go on from the `n_before` records of the data set's earlier files."""
    with open_chat_file(source) as file:
        kind = reading.container or detect_file(file, name, reading.limits.max_unpacked_bytes).container
        record = n_before
        try:
            with unpacked(file, reading.limits.max_unpacked_bytes) as stream:
                for raw in _raw_rows(kind, stream, reading):
                    raw.record += n_before
                    record = raw.record
                    yield raw if isinstance(raw, Row) else _row(raw, reading.layout, reading.columns)
        except DamagedPackError as error:
            problem = Problem("", error.code, f"{error.message} (after {record} records)")
            yield Reject(record + 1, None, None, (problem,))


def _raw_rows(container: Container, file: BinaryIO, reading: _Reading) -> Iterator[Raw | Row]:
    usual = reading.layout in (None, "messages") and not reading.columns
    plain, limits = read_plain if usual else _never_plain, reading.limits
    if container == "jsonl":
        return read_jsonl(file, plain, limits.max_row_bytes)
    if container == "json":
        return read_json(file, plain, limits.max_row_bytes)
    if container == "csv":
        return read_csv(file, limits.max_row_bytes)
    read = read_parquet if container == "parquet" else read_arrow
    return read(file, limits.max_unpacked_bytes, limits.max_row_bytes)


def _never_plain(_data: bytes, _record: int, _line: int | None) -> None:
    return None


def _row(raw: Raw, layout: Layout | None, columns: Mapping[str, str]) -> Row | Reject:
    if raw.problem is not None:
        return Reject(raw.record, raw.line, raw.byte_offset, (raw.problem,))
    read = read_record(raw.value, layout, columns)
    if read.problems:
        return Reject(raw.record, raw.line, raw.byte_offset, tuple(read.problems))
    json = dump_messages(read.messages).encode()
    return Row(raw.record, raw.line, read.source_id, read.messages, json, read.labels, read.source)
