"""CSV with a header to decoded records. A quoted field may hold line breaks; an empty cell is an absent field."""

import csv
import re
from collections.abc import Iterator
from typing import BinaryIO

from curator.corpus.formats.columnar import repeated, with_json_columns
from curator.corpus.formats.json_decode import MAX_RECORD_BYTES
from curator.corpus.formats.json_records import BOM
from curator.corpus.formats.rows import Problem, Raw

_ESCAPED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is not UTF-8
_KEPT_EMPTY = ("output", "completion", "prompt")  # an empty answer or question has a code of its own


def read_csv(file: BinaryIO) -> Iterator[Raw]:
    """Rows after the header, comma, semicolon or tab between cells; `line` is where the row begins."""
    lines = _Lines(file)
    first = next(lines, "")
    rows = csv.reader(lines.before(first), delimiter=delimiter_of(first), strict=True)
    csv.field_size_limit(MAX_RECORD_BYTES)  # one setting for the process; the default of 128 KiB is not a bound of ours
    header: list[str] | None = None
    record, begin = 0, 1
    while True:
        begin = lines.number + 1 if header is not None else 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            record += 1
            yield Raw(record, begin, problem=Problem("", "invalid_csv", f"{error}: check the quotes"))
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if twice := repeated(header):
                yield Raw(1, 1, problem=twice)
                return
        elif cells:
            record += 1
            yield _record(record, begin, header, cells)


def delimiter_of(header: str) -> str:
    """What separates the cells of a header line: of comma, semicolon and tab the one it has most."""
    return max(",;\t", key=header.count)


def _record(record: int, line: int, header: list[str], cells: list[str]) -> Raw:
    if len(cells) != len(header):
        text = f"{len(cells)} cells where the header has {len(header)}: check commas and quotes"
        return Raw(record, line, problem=Problem("", "invalid_csv", text))
    if sum(map(len, cells)) > MAX_RECORD_BYTES:
        text = f"a record may have {MAX_RECORD_BYTES // 2**20} MiB"
        return Raw(record, line, problem=Problem("", "record_too_large", text))
    for key, cell in zip(header, cells, strict=True):
        if not_utf8 := _ESCAPED.search(cell):
            text = (
                f"byte 0x{ord(not_utf8[0]) - 0xDC00:02x} is not UTF-8: the file is perhaps Windows-1252 or Latin-1; "
                "convert it to UTF-8"
            )
            return Raw(record, line, problem=Problem(f"/{key}", "invalid_unicode", text))
    present = {key: cell for key, cell in zip(header, cells, strict=True) if cell or key in _KEPT_EMPTY}
    return with_json_columns(record, line, dict(present))


class _Lines:
    """Text lines with their ends, counted; bytes that are not UTF-8 become half surrogates, for a later check."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.number = 0
        self._again: str | None = None

    def before(self, line: str) -> "_Lines":
        """Give this line once more."""
        self._again, self.number = line, 0
        return self

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self._again is not None:
            text, self._again = self._again, None
        else:
            data = self._file.readline(MAX_RECORD_BYTES)
            if self.number == 0:
                data = data.removeprefix(BOM)
            text = data.decode("utf-8", "surrogateescape")
        if not text:
            raise StopIteration
        self.number += 1
        return text
