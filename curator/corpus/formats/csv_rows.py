"""CSV with a header to decoded records. A quoted field may hold line breaks; an empty cell is an absent field."""

import csv
import re
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from curator.corpus.formats.budget import MAX_ROW_BYTES, too_many_bytes
from curator.corpus.formats.columnar import columns_problem, with_json_columns
from curator.corpus.formats.json_records import BOM
from curator.corpus.formats.rows import Problem, Raw

_ESCAPED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is not UTF-8
_UNQUOTED = re.compile(rb'(?:[^"\n]++|"[^"]*+")*+')  # up to the end of a line, or a cell that goes on
SKIPPED_BYTES = 2**20  # read at once of what is passed over
_KEPT_EMPTY = ("output", "completion", "prompt")  # an empty answer or question has a code of its own


def read_csv(file: BinaryIO, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Raw]:
    """Rows after the header, comma, semicolon or tab between cells; `line` is where the row begins."""
    lines = _Lines(file, max_row_bytes)
    try:
        first = next(lines, "")
        while first and not first.strip("\r\n \t\ufeff"):  # blank lines before the header
            first = next(lines, "")
    except _TooLongError:
        yield Raw(1, 1, problem=too_many_bytes(max_row_bytes))
        return
    begin = lines.number
    rows = csv.reader(lines.before(first), delimiter=delimiter_of(first), strict=True)
    csv.field_size_limit(2**31 - 1)  # one setting for the process, and not a bound of ours: `lines` has that
    header: list[str] | None = None
    record = 0
    while True:
        begin = begin if header is None else lines.number + 1
        lines.n_bytes = 0
        try:
            cells = next(rows)
        except _TooLongError:
            record += 1
            yield Raw(record, begin, problem=too_many_bytes(max_row_bytes))
            if header is None:
                return
            continue
        except StopIteration:
            return
        except csv.Error as error:
            record += 1
            yield Raw(record, begin, problem=Problem("", "invalid_csv", f"{error}: check the quotes"))
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if wrong := columns_problem([name for name in header if name]):  # those without a name are not read
                yield Raw(1, begin, problem=wrong)
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
    if any(cell for key, cell in zip(header[1:], cells[1:], strict=True) if not key):  # the first may be an index
        text = "a cell under a column without a name would be left behind: check commas and quotes"
        return Raw(record, line, problem=Problem("", "invalid_csv", text))
    for key, cell in zip(header, cells, strict=True):
        if not_utf8 := _ESCAPED.search(cell):
            text = (
                f"byte 0x{ord(not_utf8[0]) - 0xDC00:02x} is not UTF-8: the file is perhaps Windows-1252 or Latin-1; "
                "convert it to UTF-8"
            )
            return Raw(record, line, problem=Problem(f"/{key}", "invalid_unicode", text))
    present = {key: cell for key, cell in zip(header, cells, strict=True) if cell or key in _KEPT_EMPTY}
    return with_json_columns(record, line, dict(present))


class _TooLongError(Exception):
    """A record has more bytes than are taken; the lines go on after it."""


class _Lines:
    """Text lines with their ends, counted; bytes that are not UTF-8 become half surrogates, for a later check.

    `n_bytes` counts those of the present record. Beyond `max_bytes` the rest of the record is passed over and
    _TooLongError raised; it ends where an even number of quotes has been seen at the end of a line.
    """

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file, self._max_bytes = file, max_bytes
        self.number = self.n_bytes = self._n_quotes = 0
        self._rest = b""  # read, but not given yet
        self._again: str | None = None

    def before(self, line: str) -> "_Lines":
        """Give this line once more."""
        self._again, self.number = line, self.number - 1
        return self

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self._again is not None:
            text, self._again = self._again, None
        else:
            data = self._readline()
            if self.number == 0:
                data = data.removeprefix(BOM)
            self._n_quotes = data.count(b'"') + (self._n_quotes if self.n_bytes else 0)
            self.n_bytes += len(data)
            if self.n_bytes > self._max_bytes:
                self._pass_over(data)
            text = data.decode("utf-8", "surrogateescape")
        if not text:
            raise StopIteration
        self.number += 1
        return text

    def _readline(self) -> bytes:
        line, newline, self._rest = self._rest.partition(b"\n")
        return line + newline if newline else line + self._file.readline(self._max_bytes + 1 - len(line))

    def _pass_over(self, data: bytes) -> NoReturn:
        quoted, ended = self._n_quotes % 2 == 1, data.endswith(b"\n") and self._n_quotes % 2 == 0
        self.number += data.endswith(b"\n")
        while not ended and (data := self._rest or self._file.read(SKIPPED_BYTES)):
            self._rest = b""
            begin = data.find(b'"') + 1 if quoted else 0
            if quoted and not begin:
                self.number += data.count(b"\n")
                continue
            found = _UNQUOTED.match(data, begin)
            end = begin if found is None else found.end()
            ended, quoted = data[end : end + 1] == b"\n", data[end : end + 1] == b'"'
            if ended:
                self._rest = data[end + 1 :]
            self.number += data.count(b"\n", 0, end + 1 if ended else len(data))
        raise _TooLongError
