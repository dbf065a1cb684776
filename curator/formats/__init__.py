"""Chat files of the formats that fine-tuners use, as canonical rows in flat memory.

JSON Lines, a JSON array (or objects one after another) and Parquet, each in the `messages` or the `sharegpt`
layout. Container and layout are detected and can be named instead.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from curator.errors import BadInputError, MissingError
from curator.formats.containers import Raw, count_parquet, read_json, read_jsonl, read_parquet
from curator.formats.detect import detect_file
from curator.formats.record import read_record
from curator.formats.rows import (
    CODES,
    CONTAINERS,
    LABELS,
    LAYOUTS,
    Container,
    Detected,
    Layout,
    Problem,
    Reject,
    Row,
)

__all__ = [
    "CODES",
    "CONTAINERS",
    "LABELS",
    "LAYOUTS",
    "Container",
    "Detected",
    "Layout",
    "Problem",
    "Reject",
    "Row",
    "count_parquet",
    "detect",
    "open_chat_file",
    "read_rows",
    "read_values",
    "source_name",
]

Source = str | Path | BinaryIO
MAX_PROBLEMS = 20  # listed per record
_READERS: dict[Container, Callable[[BinaryIO], Iterator[Raw]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
}


def detect(source: Source, *, name: str | None = None) -> Detected:
    """Container and layout of a file; raises BadInputError where neither its bytes nor its name tell."""
    with open_chat_file(source) as file:
        return detect_file(file, name or source_name(source))


def read_rows(
    source: Source,
    *,
    format: Container | None = None,  # noqa: A002 - the word of the command line
    layout: Layout | None = None,
    name: str | None = None,
) -> Iterator[Row | Reject]:
    """The records of a path or seekable binary file, in order: a Row where usable, else a Reject with reasons.

    `format` and `layout` override detection (without `layout` each record is read as the one it shows). Memory
    is one record. Raises BadInputError when the file as a whole cannot be read.
    """
    with open_chat_file(source) as file:
        container = format or detect_file(file, name or source_name(source)).container
        file.seek(0)
        for raw in _READERS[container](file):
            yield _row(raw, layout)


def read_values(values: Iterable[object], *, layout: Layout | None = None) -> Iterator[Row | Reject]:
    """The same for records that are decoded already, such as the rows of a JSON request."""
    for record, value in enumerate(values, start=1):
        yield _row(Raw(record, None, None, value), layout)


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
        file = Path(source).open("rb")  # noqa: SIM115 - errors while opening differ from those while reading
    except FileNotFoundError as error:
        raise MissingError(f"there is no file {source}") from error
    except OSError as error:
        raise BadInputError(f"{source} cannot be read: {error.strerror}") from error
    with file:
        yield file


def source_name(source: Source) -> str:
    """The file's own name, without its folder."""
    return Path(source).name if isinstance(source, str | Path) else Path(str(getattr(source, "name", "upload"))).name


def _row(raw: Raw, layout: Layout | None) -> Row | Reject:
    if raw.problem is not None:
        return Reject(raw.record, raw.line, raw.byte_offset, (raw.problem,))
    read = read_record(raw.value, layout)
    if read.problems:
        return Reject(raw.record, raw.line, raw.byte_offset, tuple(read.problems[:MAX_PROBLEMS]))
    return Row(raw.record, raw.line, read.source_id, read.messages, read.labels)
