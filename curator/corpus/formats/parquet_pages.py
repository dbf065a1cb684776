"""What the pages of a Parquet file hold, from their own headers, before any of them is unpacked.

The footer is written by whoever made the file, and a page of a few bytes may unpack to gigabytes, or stand for as many
values as it likes. The header of each page says both, and is what Arrow's reader goes by. The format: Thrift's compact
protocol (https://github.com/apache/parquet-format, PageHeader).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from curator.corpus.formats.budget import MAX_VALUES, MIB, PAGE_ROWS
from curator.errors import BadInputError

MAX_FOOTER_BYTES = 16 * MIB
MAX_CHUNK_VALUES = 16 * 2**20  # of a column of lists in one row group; levels take some 10 bytes each in memory
MAX_PAGES = 100_000  # of a file; each costs some 60 microseconds to look at
MAX_FIXED_BYTES = 1024  # of one value of a column of fixed width
_HEAD_BYTES = 256
_MAX_HEADER_BYTES = 2**20
_DICTIONARY, _DATA, _DATA_V2 = 2, 0, 3
_DELTA_BYTE_ARRAY = 7


class _CutHeaderError(Exception):
    """A page header goes on beyond the bytes at hand."""


def check_footer_size(file: BinaryIO) -> None:
    """Refuse a footer that is too large to be read; raises BadInputError."""
    file.seek(0, 2)
    if file.tell() >= 12:
        file.seek(-8, 2)
        n_bytes = int.from_bytes(file.read(4), "little")
        if n_bytes > MAX_FOOTER_BYTES and file.read(4) == b"PAR1" and n_bytes <= file.tell():
            raise BadInputError(f"the Parquet footer has {n_bytes:,} bytes: at most {MAX_FOOTER_BYTES:,} are read")
    file.seek(0)


def shared_texts(file: BinaryIO, metadata: Any, max_row_bytes: int) -> list[str]:
    """Columns of texts that are to be read as dictionaries: copied out, their texts could be larger than the file.

    Raises BadInputError for pages that would unpack to more than PAGE_ROWS rows of `max_row_bytes`, for row groups
    of more values than their rows may have, and for more than MAX_PAGES pages.
    """
    bound, shared, n_pages = PAGE_ROWS * max_row_bytes, set[str](), 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for place in range(row_group.num_columns):
            chunk, column = row_group.column(place), metadata.schema.column(place)
            n_values, largest = 0, 0
            for page in _pages(file, chunk):
                n_pages += 1
                if n_pages > MAX_PAGES:
                    raise BadInputError(f"the Parquet file has more than {MAX_PAGES:,} pages: write larger ones")
                if page.n_bytes > bound:
                    raise BadInputError(
                        f"a page of column {column.path[:100]!r} unpacks to {page.n_bytes:,} bytes, of which {bound:,} "
                        f"are read: write smaller pages, or raise max_row_bytes (--max-row-bytes)"
                    )
                if page.kind == _DICTIONARY:
                    largest = page.n_bytes
                else:
                    n_values += page.n_values
                    if page.encoding == _DELTA_BYTE_ARRAY and page.n_values * page.n_bytes > bound:
                        raise BadInputError(
                            f"column {column.path[:100]!r} is written as DELTA_BYTE_ARRAY in a page of "
                            f"{page.n_values:,} values, which may unpack to any size: write it in another encoding"
                        )
            _check_values(column, n_values, row_group.num_rows)
            if largest * n_values > bound:
                if column.physical_type == "BYTE_ARRAY":
                    shared.add(column.path)
                elif column.physical_type == "FIXED_LEN_BYTE_ARRAY" and column.length > MAX_FIXED_BYTES:
                    raise BadInputError(f"column {column.path[:100]!r} has values of {column.length:,} bytes each")
    return sorted(shared)


def _check_values(column: Any, n_values: int, n_rows: int) -> None:
    if not column.max_repetition_level or n_values <= MAX_VALUES:
        return
    if n_values > min(MAX_CHUNK_VALUES, MAX_VALUES * max(n_rows, 1)):
        raise BadInputError(
            f"column {column.path[:100]!r} has {n_values:,} values in a row group of {n_rows:,} rows: a row may have "
            f"{MAX_VALUES:,} and a row group {MAX_CHUNK_VALUES:,}; write smaller rows or row groups"
        )


@dataclass(frozen=True)
class _Page:
    kind: int
    n_bytes: int  # unpacked
    n_values: int
    encoding: int


def _pages(file: BinaryIO, chunk: Any) -> Iterator[_Page]:
    """The pages of a column chunk; it ends where they do, or where they cannot be understood."""
    starts = [chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None]
    at = min(start for start in starts if start is not None)
    end = at + chunk.total_compressed_size
    while at < end:
        header, size = _header(file, at)
        if header is None:
            return
        detail: dict[int, int] = next((header[key] for key in (5, 7, 8) if isinstance(header.get(key), dict)), {})
        encoding = detail.get(4 if 8 in header else 2, 0)
        yield _Page(header.get(1, -1), header.get(2, 0), detail.get(1, 0), encoding)
        packed = header.get(3, 0)
        if packed < 0:
            return
        at += size + packed


def _header(file: BinaryIO, at: int) -> tuple[dict[int, Any] | None, int]:
    """The fields of the page header at a byte of the file, and its size; None where there is none."""
    n_bytes = _HEAD_BYTES
    while n_bytes <= _MAX_HEADER_BYTES:
        file.seek(at)
        data = file.read(n_bytes)
        reader = _Compact(data)
        try:
            return reader.struct(), reader.at
        except _CutHeaderError:
            if len(data) < n_bytes:
                return None, 0
            n_bytes *= 8
        except (ValueError, RecursionError):
            return None, 0
    return None, 0


class _Compact:
    """Thrift's compact protocol, as far as page headers go."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        if depth > 8:
            raise ValueError("a page header is not nested so deeply")
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            found[field] = self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # true and false stand in the head
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._take(8)
        if kind == 8:
            return self._take(self._unsigned())
        if kind in (9, 10):
            head = self._byte()
            n_items = self._unsigned() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(min(n_items, len(self.data)))]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"type {kind} does not stand in a page header")

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, n_bytes: int) -> bytes:
        found = self.data[self.at : self.at + n_bytes]
        if len(found) < n_bytes:
            raise _CutHeaderError
        self.at += n_bytes
        return found

    def _unsigned(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _signed(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)
