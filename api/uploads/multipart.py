"""Sorting multipart/form-data as it streams past: the file's bytes, and small text parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart.multipart import parse_options_header

from api.errors import ApiError
from curator.recipe.document import MAX_DOCUMENT_BYTES

FILE_PART = "file"
TEXT_PARTS = ("on_bad_rows", "format", "layout")  # and what the route takes
MAX_TEXT_BYTES = MAX_DOCUMENT_BYTES  # YAML is read slowly


@dataclass
class Parts:
    """Sorts multipart data: the file's bytes to the buffer that `taken` empties, the text parts to memory.

    `asked` names the parts that the route takes beside the file and TEXT_PARTS; true for those that may come several
    times, as boxes of a form do: their texts are joined by line feeds, and have one bound. `file_part` names the file.
    """

    asked: Mapping[str, bool]
    file_part: str = FILE_PART
    file_name: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    n_buffered: int = 0
    n_bytes: int = 0  # of the file so far
    _buffer: list[bytes] = field(default_factory=list)
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _name: str = ""
    _text: bytearray = field(default_factory=bytearray)

    def callbacks(self) -> dict[str, Any]:
        """What the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def taken(self) -> list[bytes]:
        """The file's bytes that came since the last call."""
        found, self._buffer = self._buffer, []
        self.n_buffered = 0
        return found

    def _begin(self) -> None:
        self._disposition = b""
        self._text.clear()

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        names = (self.file_part, *self.asked, *TEXT_PARTS)
        if self._name not in names:
            known = ", ".join(names)
            raise ApiError(422, "unknown_part", f"unknown part {self._name!r}; there are: {known}")
        if (self._name in self.texts and not self.asked.get(self._name)) or (
            self._name == self.file_part and self.file_name is not None
        ):
            raise ApiError(422, "repeated_part", f"the part {self._name!r} came twice")
        if self._name in self.texts:
            self._text += self.texts[self._name].encode() + b"\n"
        if self._name == self.file_part:
            self.file_name = options.get(b"filename", b"file").decode(errors="replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self.file_part:
            self._buffer.append(data[start:end])
            self.n_buffered += end - start
            self.n_bytes += end - start
            return
        if len(self._text) + end - start > MAX_TEXT_BYTES:
            raise ApiError(413, "too_large", f"the part {self._name!r} is over {MAX_TEXT_BYTES} bytes")
        self._text += data[start:end]

    def _part_end(self) -> None:
        if self._name == self.file_part:
            return
        try:
            self.texts[self._name] = self._text.decode()
        except UnicodeDecodeError as error:
            raise ApiError(400, "not_utf8", f"the part {self._name!r} is not UTF-8") from error

    def _end(self) -> None:
        self.ended = True
