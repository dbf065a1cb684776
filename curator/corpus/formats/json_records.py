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

from curator.corpus.formats.budget import CLOSED, MAX_ROW_BYTES, PIECE_BYTES, STRING, too_many_bytes
from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.corpus.formats.rows import Problem, Raw, Row

CHUNK_BYTES = 2**20
MAX_EMPTY_ARRAYS = 1_000  # millions of them would take minutes, and give no record that a bound counts
BOM = b"\xef\xbb\xbf"

# A string, whole (group 1 is its closing quote) or as far as the buffer goes; or one character of structure.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[\]{},]', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BRACKETS = bytes.maketrans(b"[{]}", bytes([1, 1, 255, 255]))  # as steps of depth, of one byte each
_BLANK = re.compile(rb"\s*")
_NEXT_OBJECT = re.compile(rb"\}\s*\{")
_OPEN, _CLOSE, _COMMA, _QUOTE = b"[{", b"]}", b",", b'"'


@dataclass(frozen=True)
class Slice:
    """The bytes of one record and where they start.

    `end`: `whole`; `cut` where the file ends before the record or the array does; `too_large`; `trailing` for
    text after the array. A record that is too large has no bytes.
    """

    offset: int
    data: bytes
    end: Literal["whole", "cut", "too_large", "trailing"] = "whole"


def split_records(file: BinaryIO, max_bytes: int = MAX_ROW_BYTES) -> Iterator[Slice]:
    """The records of JSON arrays, or of JSON objects, that follow each other, in file order.

    Those of more than `max_bytes` are passed over, and reading goes on after them.
    """
    head = _skip_blank(file)
    if head is None:
        return
    offset, byte = head
    if byte == b"[":
        yield from _Splitter(file, offset + 1, b"", max_bytes).arrays()
    else:
        yield from _Splitter(file, offset, byte, max_bytes).objects()


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
    """A buffer over the file: `start` is where the present record starts, `at` where looking goes on.

    Of a record of more than `max_bytes` only the end is looked for: `lost` is then the byte where it started.
    """

    def __init__(self, file: BinaryIO, base: int, buffer: bytes, max_bytes: int) -> None:
        self.file, self.base, self.buffer, self.max_bytes = file, base, buffer, max_bytes
        self.start = self.at = self.depth = 0
        self.chunk = CHUNK_BYTES
        self.lost: int | None = None

    def arrays(self) -> Iterator[Slice]:
        """The records of one array and of those after it: files put one after another, or an array in each line."""
        self.depth = 1
        n_empty = 0
        while True:
            is_empty = True
            for piece in self._array():
                is_empty = False
                yield piece
            n_empty += is_empty
            if self.depth or not self._skip_blank():
                return
            if self.buffer[self.start : self.start + 1] != b"[" or n_empty > MAX_EMPTY_ARRAYS:
                yield self._slice(min(len(self.buffer), self.start + self.max_bytes), "trailing")
                return
            self.start = self.at = self.start + 1
            self.depth = 1

    def _array(self) -> Iterator[Slice]:
        """The records up to the bracket that closes the array, where `depth` is 0, or to the end of the file."""
        any_record = False
        while True:
            for token, begin, end in self._tokens():
                if token in _OPEN:
                    self.depth += 1
                elif token in _CLOSE and (self.depth > 1 or token == b"]"):
                    self.depth -= 1
                    if self.depth == 0:
                        last = self._slice(begin)
                        # `[1, ]` has an empty last record; `[]` has none
                        if any_record or last.data.strip() or last.end != "whole":
                            yield last
                        self.start = end
                        return
                elif token == _COMMA and self.depth == 1:
                    yield self._slice(begin)
                    self.start, any_record = end, True
            if not self._refill():
                break
        whole = self.depth == 1 and (self.lost is not None or self.buffer[self.start :].strip() != b"")
        if whole:  # only the closing bracket is missing
            yield self._slice(len(self.buffer))
            self.start = len(self.buffer)
        yield self._slice(len(self.buffer), "cut")

    def objects(self) -> Iterator[Slice]:
        self.depth = 0
        while True:
            for token, _, end in self._tokens():
                if token in _OPEN:
                    self.depth += 1
                elif token in _CLOSE:
                    self.depth -= 1
                    if self.depth <= 0:
                        yield self._slice(end)
                        self.start, self.depth = end, 0
            if not self._refill():
                break
        if self.lost is not None or self.buffer[self.start :].strip():
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
        if len(self.buffer) - self.start > self.max_bytes:
            self._lose()
        self.chunk = CHUNK_BYTES if self.start else min(self.chunk * 2, max(CHUNK_BYTES, self.max_bytes // 2))
        data = self.file.read(self.chunk)
        self.buffer = self.buffer[self.start :] + data
        self.base += self.start
        self.at -= self.start
        self.start = 0
        if self.depth > 1 and (self.lost is not None or len(self.buffer) - len(data) > CHUNK_BYTES // 2):
            self._skim()
        return bool(data)

    def _skim(self) -> None:
        """Pass over the inside of a record that is longer than a chunk, without a look at each token."""
        import numpy as np

        size = PIECE_BYTES
        while self.at + size <= len(self.buffer):
            found = CLOSED.match(self.buffer, self.at, self.at + size)
            end = self.at if found is None else found.end()
            brackets = STRING.sub(b"", self.buffer[self.at : end]).translate(_BRACKETS, _NO_BRACKETS)
            depths = self.depth + np.cumsum(np.frombuffer(brackets, np.int8), dtype=np.int64)
            if len(depths) and depths.min() <= 1:
                return
            size = size * 2 if end == self.at else PIECE_BYTES
            self.depth, self.at = int(depths[-1]) if len(depths) else self.depth, end

    def _lose(self) -> None:
        """Drop the present record's bytes, also within a text: of that its opening quote stays, and what may escape."""
        if self.lost is None:
            self.lost = self.base + self.start
        if self.buffer[self.at : self.at + 1] != _QUOTE:  # the rest of the buffer has no structure
            self.start = self.at = len(self.buffer)
            return
        if len(self.buffer) - self.at <= self.max_bytes:
            self.start = self.at
            return
        n_escapes = len(self.buffer) - len(self.buffer.rstrip(b"\\"))
        kept = _QUOTE + (b"\\" if n_escapes % 2 else b"")
        self.start = self.at = len(self.buffer) - len(kept)
        self.buffer = self.buffer[: self.start] + kept

    def _slice(self, end: int, how: Literal["whole", "cut", "too_large", "trailing"] = "whole") -> Slice:
        data = self.buffer[self.start : end]
        blank = len(data) - len(data.lstrip())
        if self.lost is None and len(data) - blank <= self.max_bytes:
            return Slice(self.base + self.start + blank, data.lstrip(), how)
        begin, self.lost = self.base + self.start + blank if self.lost is None else self.lost, None
        return Slice(begin, b"", "too_large")

    def _skip_blank(self) -> bool:
        """Put `start` at the next byte that is not blank; False at the end of the file."""
        while (end := _BLANK.match(self.buffer, self.start).end()) == len(self.buffer):  # type: ignore[union-attr]
            self.start = self.at = end
            if not self._refill():
                return False
        self.start = end
        return True


Plain = Callable[[bytes, int, int | None], Row | None]  # the quick way, asked first


def read_jsonl(file: BinaryIO, plain: Plain, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Raw | Row]:
    """Records of JSON Lines. Blank lines are not records; a bad line does not stop the file."""
    offset, record, number = 0, 0, 0
    while line := file.readline(max_row_bytes + 1):
        number += 1
        begin, offset = offset, offset + len(line)
        # A line without its end may be cut off, one that long is: both need the careful way.
        too_large = len(line) > max_row_bytes and not line.endswith(b"\n")
        if line.endswith(b"\n") and (row := plain(line, record + 1, number)) is not None:
            record += 1
            yield row
            continue
        if too_large:
            offset += _skip_line(file)
        if number == 1 and line.startswith(BOM):
            begin, line = begin + len(BOM), line[len(BOM) :]
        text = line.strip()
        if not text and not too_large:
            continue
        record += 1
        begin += len(line) - len(line.lstrip())
        if too_large:
            yield Raw(record, number, begin, problem=too_many_bytes(max_row_bytes))
            continue
        raw = _decoded(record, number, begin, text, cut=not line.endswith(b"\n"))
        several = _several(raw, text, begin)
        yield from several or [raw]
        record += max(len(several) - 1, 0)


def _several(raw: Raw, text: bytes, begin: int) -> list[Raw]:
    """The records of a line that holds several objects one after another; [] where that is not what is wrong."""
    if raw.problem is None or raw.problem.code == "record_too_large" or not _NEXT_OBJECT.search(text):
        return []
    pieces = list(_Splitter(io.BytesIO(text), 0, b"", len(text)).objects())
    found = [
        _decoded(raw.record + number, raw.line, begin + piece.offset, piece.data, cut=False)
        for number, piece in enumerate(pieces)
        if piece.end == "whole"
    ]
    whole = len(found) == len(pieces) > 1 and all(item.problem is None for item in found)
    return found if whole else []


def read_json(file: BinaryIO, plain: Plain, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Raw | Row]:
    """Records of a JSON array, or of JSON objects that follow each other; memory is one record."""
    for number, piece in enumerate(split_records(file, max_row_bytes), start=1):
        row = plain(piece.data, number, None) if piece.end == "whole" else None
        yield row or _from_slice(number, piece, max_row_bytes)


def _from_slice(record: int, piece: Slice, max_row_bytes: int) -> Raw:
    if piece.end == "too_large":
        return Raw(record, None, piece.offset, problem=too_many_bytes(max_row_bytes))
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
    while piece := file.readline(CHUNK_BYTES):
        passed += len(piece)
        if piece.endswith(b"\n"):
            break
    return passed
