"""Files to decoded records, one at a time: JSON Lines, a JSON array, Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from curator.formats.decode import MAX_RECORD_BYTES, UndecodableError, decode
from curator.formats.json_stream import BOM, Slice, split_records
from curator.formats.rows import Problem

PARQUET_BATCH_ROWS = 256


@dataclass(frozen=True)
class Raw:
    """One record as it stands in the file: a decoded value, or the problem that kept it from being decoded."""

    record: int
    line: int | None
    byte_offset: int | None
    value: Any = None
    problem: Problem | None = None


def read_jsonl(file: BinaryIO) -> Iterator[Raw]:
    """Records of JSON Lines. Blank lines are no records; a bad line does not stop the file."""
    offset, record, number = 0, 0, 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        begin, offset = offset, offset + len(line)
        too_large = len(line) > MAX_RECORD_BYTES
        if too_large:
            offset += _skip_line(file)
        if number == 1 and line.startswith(BOM):
            begin, line = begin + len(BOM), line[len(BOM) :]
        text = line.strip()
        if not text:
            continue
        record += 1
        begin += len(line) - len(line.lstrip())
        if too_large:
            yield Raw(record, number, begin, problem=_too_large())
        else:
            yield _decoded(record, number, begin, text, cut=not line.endswith(b"\n"))


def read_json(file: BinaryIO) -> Iterator[Raw]:
    """Records of a JSON array, or of JSON objects that follow each other; memory is one record."""
    for number, piece in enumerate(split_records(file), start=1):
        yield _from_slice(number, piece)


def read_parquet(file: BinaryIO) -> Iterator[Raw]:
    """Rows of a Parquet file as dicts; a null field of a struct counts as absent. JSON text is decoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = 0
    try:
        batches = pq.ParquetFile(file, pre_buffer=False).iter_batches(batch_size=PARQUET_BATCH_ROWS)
        for batch in batches:
            for value in _dicts(batch):
                record += 1
                yield _from_parquet(record, value)
    except (pa.ArrowException, OSError) as error:
        message = f"damaged after {record} rows: {error}"
        yield Raw(record + 1, None, None, problem=Problem("", "invalid_parquet", message))


def count_parquet(file: BinaryIO) -> int | None:
    """Rows of a Parquet file; None when it is not whole (reading it will say how)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(file).metadata.num_rows)
    except (pa.ArrowException, OSError):
        return None


def _dicts(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of an Arrow batch; None for a row with bytes that are not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # raised before the first row: go through them one by one
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def _from_parquet(record: int, value: dict[str, Any] | None) -> Raw:
    if value is None:
        return Raw(record, None, None, problem=Problem("", "invalid_unicode", "bytes that are not UTF-8"))
    for key in ("messages", "conversations"):
        if isinstance(value.get(key), str):
            try:
                value[key] = decode(value[key].encode(), 0)
            except UndecodableError as error:
                problem = Problem(f"/{key}", error.problem.code, error.problem.message)
                return Raw(record, None, None, problem=problem)
    return Raw(record, None, None, value)


def _from_slice(record: int, piece: Slice) -> Raw:
    if piece.end == "too_large":
        return Raw(record, None, piece.offset, problem=_too_large())
    if piece.end == "trailing":
        problem = Problem("", "invalid_json", f"text after the end of the array (byte {piece.offset})")
        return Raw(record, None, piece.offset, problem=problem)
    raw = _decoded(record, None, piece.offset, piece.data, cut=piece.end == "cut")
    if piece.end == "cut" and raw.problem is None:
        return Raw(record, None, piece.offset, problem=Problem("", "truncated_json", "the array does not end"))
    return raw


def _decoded(record: int, line: int | None, offset: int, data: bytes, *, cut: bool) -> Raw:
    try:
        return Raw(record, line, offset, decode(data, offset, cut=cut))
    except UndecodableError as error:
        return Raw(record, line, error.byte_offset, problem=error.problem)


def _skip_line(file: BinaryIO) -> int:
    """Read on to the end of the line; returns the bytes passed over."""
    passed = 0
    while piece := file.readline(MAX_RECORD_BYTES):
        passed += len(piece)
        if piece.endswith(b"\n"):
            break
    return passed


def _too_large() -> Problem:
    return Problem("", "record_too_large", f"a record may have {MAX_RECORD_BYTES // 2**20} MiB")
