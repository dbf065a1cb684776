"""JSON files to decoded records, one at a time: JSON Lines, a JSON array."""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from curator.formats.decode import MAX_RECORD_BYTES, UndecodableError, decode
from curator.formats.json_stream import BOM, Slice, split_records
from curator.formats.rows import Problem, Raw, Row

Plain = Callable[[bytes, int, int | None], Row | None]  # the quick way, asked first


def read_jsonl(file: BinaryIO, plain: Plain) -> Iterator[Raw | Row]:
    """Records of JSON Lines. Blank lines are no records; a bad line does not stop the file."""
    offset, record, number = 0, 0, 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        begin, offset = offset, offset + len(line)
        # A line without its end may be cut off, one that long is: both need the careful way.
        if line.endswith(b"\n") and (row := plain(line, record + 1, number)) is not None:
            record += 1
            yield row
            continue
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


def read_json(file: BinaryIO, plain: Plain) -> Iterator[Raw | Row]:
    """Records of a JSON array, or of JSON objects that follow each other; memory is one record."""
    for number, piece in enumerate(split_records(file), start=1):
        row = plain(piece.data, number, None) if piece.end == "whole" else None
        yield row or _from_slice(number, piece)


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
