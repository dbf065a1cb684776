"""What one record may hold, checked before anything is built of it: bytes, values, levels and turns.

A few kilobytes of a compressed file can stand for gigabytes of values. So each reader looks at sizes first (bytes of a
line, offsets of a column) and gives a record over its budget as one problem instead of its values.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from curator.corpus.formats.rows import Problem

MIB = 2**20
MAX_ROW_BYTES = 4 * MIB
MAX_VALUES = 200_000  # of one record: texts, numbers, lists and objects
MAX_DEPTH = 100
MAX_TURNS = 10_000
PIECE_BYTES = 2**16
MAX_PROBLEMS = 20  # listed for one record; reading it ends at the next one
PAGE_ROWS, BATCH_ROWS = 32, 64  # a page of Parquet, a batch of Arrow may hold as many of the largest rows

STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
CLOSED = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)  # up to a string that goes on
_BRACKET = re.compile(rb"[\[\]{}]")


def too_many_bytes(max_row_bytes: int) -> Problem:
    """The problem of a record with more bytes than `max_row_bytes`."""
    text = f"more than {max_row_bytes:,} bytes in one record: split it, or raise max_row_bytes (--max-row-bytes)"
    return Problem("", "record_too_large", text)


def too_many_values() -> Problem:
    """The problem of a record with more than MAX_VALUES values."""
    return Problem("", "record_too_large", f"more than {MAX_VALUES:,} values in one record: split it")


def too_deep() -> Problem:
    """The problem of a record with more than MAX_DEPTH levels."""
    return Problem("", "invalid_json", f"nested too deeply: a record may have {MAX_DEPTH} levels")


def too_many_turns(pointer: str) -> Problem:
    """The problem of a conversation with more than MAX_TURNS turns."""
    return Problem(pointer, "record_too_large", f"more than {MAX_TURNS:,} turns: split the conversation")


def text_problem(data: bytes, max_values: int = MAX_VALUES) -> Problem | None:
    """Why the values of a JSON text are too many or too deep to be built; None when they are not.

    Every value but the first of a list or object follows a comma, so counting is enough. Texts are taken out only
    where they could matter.
    """
    n_opened = data.count(b"[") + data.count(b"{")
    if n_opened <= MAX_DEPTH and (len(data) < max_values or 1 + n_opened + data.count(b",") <= max_values):
        return None
    n_values, depth = 1, 0
    for bare in _without_texts(data):
        n_values += bare.count(b",") + bare.count(b"[") + bare.count(b"{")
        if n_values > max_values:
            return too_many_values()
        for bracket in _BRACKET.findall(bare):
            depth += 1 if bracket in b"[{" else -1
            if depth > MAX_DEPTH:
                return too_deep()
    return None


def _without_texts(data: bytes) -> Iterator[bytes]:
    """The text without its strings, in pieces: taken at once, a piece for each string would be many times its size."""
    at, size = 0, PIECE_BYTES
    while at < len(data):
        found = CLOSED.match(data, at, min(len(data), at + size))
        end = at if found is None else found.end()
        if end == at:  # within a string that is longer, or that does not end
            if at + size >= len(data):
                return
            size *= 2
            continue
        yield STRING.sub(b"", data[at:end])
        at, size = end, PIECE_BYTES


def value_problem(value: Any, max_row_bytes: int) -> Problem | None:
    """Why a decoded record is over its budget; None when it is not. Texts count their characters."""
    level, n_values, n_chars = [value], 0, 0
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        n_values += len(level)
        for item in level:
            if isinstance(item, str):
                n_chars += len(item)
            elif isinstance(item, dict):
                n_chars += sum(map(len, filter(_is_text, item)))
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            if n_values + len(below) > MAX_VALUES:
                return too_many_values()
        if n_chars > max_row_bytes:
            return too_many_bytes(max_row_bytes)
        if not below:
            return None
        level = below
    return too_deep()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


class TooManyProblemsError(Exception):
    """A record has more problems than are listed."""


class Problems(list[Problem]):
    """The problems of one record; adding the one after the last that is listed raises TooManyProblemsError."""

    def append(self, item: Problem) -> None:
        """Add a problem while there is room."""
        if len(self) >= MAX_PROBLEMS:
            raise TooManyProblemsError
        super().append(item)

    def extend(self, items: Iterable[Problem]) -> None:
        """Add problems while there is room."""
        for item in items:
            self.append(item)

    def __iadd__(self, items: Iterable[Problem]) -> "Problems":  # type: ignore[override,misc]  # narrower than a list
        self.extend(items)
        return self


__all__ = [
    "BATCH_ROWS",
    "CLOSED",
    "MAX_DEPTH",
    "MAX_PROBLEMS",
    "MAX_ROW_BYTES",
    "MAX_TURNS",
    "MAX_VALUES",
    "PAGE_ROWS",
    "PIECE_BYTES",
    "STRING",
    "Problems",
    "TooManyProblemsError",
    "text_problem",
    "too_deep",
    "too_many_bytes",
    "too_many_turns",
    "too_many_values",
    "value_problem",
]
