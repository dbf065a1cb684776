"""Cuts a JSON array (or JSON values one after another) into records without reading it whole.

Only strings, brackets and commas are looked at, so one bad record does not end the file, each record's byte
offset is exact, and memory is one record. (ijson stops at the first error, gives no offset and writes "?" for a
lone surrogate.)

JSON files to decoded records, one at a time: JSON Lines, a JSON array.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from curator.corpus.formats.json_decode import MAX_RECORD_BYTES, UndecodableError, decode
from curator.corpus.formats.rows import Problem, Raw, Row

CHUNK_BYTES = 2**20
BOM = b"\xef\xbb\xbf"

# A string, whole (group 1 is its closing quote) or as far as the buffer goes; or one character of structure.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[\]{},]', re.DOTALL)
_NEXT_OBJECT = re.compile(rb"\}\s*\{")
_OPEN, _CLOSE, _COMMA, _QUOTE = b"[{", b"]}", b",", b'"'


@dataclass(frozen=True)
class Slice:
    """The bytes of one record and where they start.

    `end`: `whole`; `cut` where the file ends before the record or the array does; `too_large`; `trailing` for
    text after the array.
    """

    offset: int
    data: bytes
    end: Literal["whole", "cut", "too_large", "trailing"] = "whole"


def split_records(file: BinaryIO) -> Iterator[Slice]:
    """The records of a JSON array, or of JSON objects that follow each other, in file order."""
    head = _skip_blank(file)
    if head is None:
        return
    offset, byte = head
    if byte == b"[":
        yield from _Splitter(file, offset + 1, b"").array()
    else:
        yield from _Splitter(file, offset, byte).objects()


def _skip_blank(file: BinaryIO) -> tuple[int, bytes] | None:
    """Offset and value of the first byte that is neither BOM nor blank."""
    offset = 0
    while byte := file.read(1):
        if byte == BOM[:1] and offset == 0:
            file.read(2)
            offset = 3
        elif byte.isspace():
            offset += 1
        else:
            return offset, byte
    return None


class _Splitter:
    """A buffer over the file: `start` is where the present record starts, `at` where looking goes on."""

    def __init__(self, file: BinaryIO, base: int, buffer: bytes) -> None:
        self.file, self.base, self.buffer = file, base, buffer
        self.start = self.at = 0
        self.chunk = CHUNK_BYTES

    def array(self) -> Iterator[Slice]:
        depth, any_record = 1, False
        while True:
            for token, begin, end in self._tokens():
                if token in _OPEN:
                    depth += 1
                elif token in _CLOSE and (depth > 1 or token == b"]"):
                    depth -= 1
                    if depth == 0:
                        last = self._slice(begin)
                        if any_record or last.data.strip():  # `[1, ]` has an empty last record; `[]` has none
                            yield last
                        yield from self._trailing(end)
                        return
                elif token == _COMMA and depth == 1:
                    yield self._slice(begin)
                    self.start, any_record = end, True
            if not self._refill():
                break
            if len(self.buffer) > MAX_RECORD_BYTES:
                yield self._slice(len(self.buffer), "too_large")
                return
        whole = depth == 1 and self.buffer[self.start :].strip() != b""
        if whole:  # only the closing bracket is missing
            yield self._slice(len(self.buffer))
            self.start = len(self.buffer)
        yield self._slice(len(self.buffer), "cut")

    def objects(self) -> Iterator[Slice]:
        depth = 0
        while True:
            for token, _, end in self._tokens():
                if token in _OPEN:
                    depth += 1
                elif token in _CLOSE:
                    depth -= 1
                    if depth <= 0:
                        yield self._slice(end)
                        self.start, depth = end, 0
            if not self._refill():
                break
            if len(self.buffer) > MAX_RECORD_BYTES:
                yield self._slice(len(self.buffer), "too_large")
                return
        if self.buffer[self.start :].strip():
            yield self._slice(len(self.buffer), "cut")

    def _tokens(self) -> Iterator[tuple[bytes, int, int]]:
        for match in _TOKEN.finditer(self.buffer, self.at):
            token, begin, end = match.group(), match.start(), match.end()
            if token[:1] == _QUOTE:
                if match.group(1) != _QUOTE:
                    self.at = begin
                    return
                self.at = end
            else:
                self.at = end
                yield token, begin, end

    def _refill(self) -> bool:
        """Drop what is done and read on; a record that fills whole chunks doubles them, to stay linear."""
        self.chunk = CHUNK_BYTES if self.start else min(self.chunk * 2, MAX_RECORD_BYTES // 2)
        data = self.file.read(self.chunk)
        self.buffer = self.buffer[self.start :] + data
        self.base += self.start
        self.at -= self.start
        self.start = 0
        return bool(data)

    def _slice(self, end: int, how: Literal["whole", "cut", "too_large", "trailing"] = "whole") -> Slice:
        data = self.buffer[self.start : end]
        if how == "too_large":
            return Slice(self.base + self.start, b"", how)
        blank = len(data) - len(data.lstrip())
        return Slice(self.base + self.start + blank, data.lstrip(), how)

    def _trailing(self, end: int) -> Iterator[Slice]:
        """One slice when anything but blanks follows the array."""
        self.start = end
        while not self.buffer[self.start :].strip():
            self.start = self.at = len(self.buffer)
            if not self._refill():
                return
        yield self._slice(len(self.buffer), "trailing")


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
            continue
        raw = _decoded(record, number, begin, text, cut=not line.endswith(b"\n"))
        several = _several(raw, text, begin) if raw.problem is not None else []
        yield from several or [raw]
        record += max(len(several) - 1, 0)


def _several(raw: Raw, text: bytes, begin: int) -> list[Raw]:
    """The records of a line that holds several objects one after another; [] where that is not what is wrong."""
    if not _NEXT_OBJECT.search(text):
        return []
    pieces = list(_Splitter(io.BytesIO(text), 0, b"").objects())
    found = [
        _decoded(raw.record + number, raw.line, begin + piece.offset, piece.data, cut=False)
        for number, piece in enumerate(pieces)
        if piece.end == "whole"
    ]
    whole = len(found) == len(pieces) > 1 and all(item.problem is None for item in found)
    return found if whole else []


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
