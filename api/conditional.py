"""Conditional and range requests (RFC 9110): entity tags, If-None-Match, If-Range, one byte range."""

import re
from dataclasses import dataclass

_ETAG = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)")


def strong_etag(content_hash: str) -> str:
    """An entity tag that promises the same bytes."""
    return f'"{content_hash}"'


def weak_etag(content_hash: str) -> str:
    """An entity tag that promises the same content, though perhaps other bytes."""
    return f'W/"{content_hash}"'


def none_match(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names `etag` (weak comparison), so that 304 is the answer."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return any(_opaque(found) == _opaque(etag) for found in _ETAG.findall(header))


def some_match(header: str, etag: str) -> bool:
    """Whether If-Match names `etag` (strong comparison: a weak tag never fits), so that the request may go on."""
    if header.strip() == "*":
        return True
    return not etag.startswith("W/") and etag in _ETAG.findall(header)


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` up to but not including `stop` of a file."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class UnsatisfiableRangeError(ValueError):
    """The range asked for lies outside the file."""


def byte_range(range_header: str | None, if_range: str | None, etag: str, n_bytes: int) -> ByteRange | None:
    """The one range to send, or None for the whole file.

    None also for several ranges, another unit, a malformed header or an If-Range that names another version:
    each may be answered with the whole. Raises UnsatisfiableRangeError for a range past the end.
    """
    if range_header is None or (if_range is not None and if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(range_header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(n_bytes - int(last), 0), n_bytes
    else:
        start, stop = int(first), min(int(last) + 1, n_bytes) if last else n_bytes
        if last and int(last) < start:
            return None
    if start >= stop:
        raise UnsatisfiableRangeError(f"bytes {range_header} of {n_bytes}")
    return ByteRange(start, stop)


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/")
