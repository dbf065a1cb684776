"""What a file is, from its first bytes; its name decides only where they leave it open."""

import csv
import json
import os
import re
from pathlib import PurePath
from typing import BinaryIO

from curator.corpus.formats.arrow_messages import ARROW_FILE
from curator.corpus.formats.causes import whole_file_cause
from curator.corpus.formats.columnar import (
    ARROW_STREAM,
    columnar_layout,
    layout_of_columns,
)
from curator.corpus.formats.compression import packing_of, unpacked
from curator.corpus.formats.csv_rows import delimiter_of
from curator.corpus.formats.json_records import BOM
from curator.corpus.formats.layouts import RECORD_KEYS, layout_of
from curator.corpus.formats.rows import Container, Detected, Layout
from curator.errors import BadInputError

HEAD_BYTES = 64 * 1024
_OTHER_PACKINGS = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\xff\xfe\x00\x00": "UTF-32",  # before UTF-16, whose mark it begins with
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_PACKED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")
_TURN_KEY = re.compile(rb'"(from|value|role|content)"\s*:')
_RECORD_KEY = re.compile(rf'"({"|".join(sorted(RECORD_KEYS))})"\s*:'.encode())


def detect_file(file: BinaryIO, name: str, max_bytes: int | None = None) -> Detected:
    """Container and layout of a seekable file, packed or not, which is left at its start.

    Raises BadInputError for empty, zip, UTF-16 and UTF-32 files and where the first bytes are of no format that is
    read, and UnpackedTooLargeError where a packed column file unpacks to more than `max_bytes`.
    """
    with unpacked(file, max_bytes) as stream:
        head = stream.read(HEAD_BYTES)
    file.seek(0)
    container = _columnar(head)
    if container is not None:
        with unpacked(file, max_bytes) as stream:
            layout = columnar_layout(stream, container, name)
        file.seek(0)
        return Detected(container, layout)
    return _detect_text(head, name, packed=packing_of(file.read(4)) is not None, file=file)


def _columnar(head: bytes) -> Container | None:
    if head[:4] == b"PAR1":
        return "parquet"
    return "arrow" if head.startswith((ARROW_FILE, ARROW_STREAM)) else None


def _detect_text(head: bytes, name: str, *, packed: bool, file: BinaryIO) -> Detected:
    file.seek(0)
    for magic, packing in _OTHER_PACKINGS.items():
        if head.startswith(magic):
            raise BadInputError(f"{name} is {packing}: unpack or convert it to UTF-8 JSON, CSV or Parquet first")
    if packed and packing_of(head):
        raise BadInputError(f"{name} is packed twice: unpack it once")
    tail = head[-4:]
    if len(head) == HEAD_BYTES and not packed:
        file.seek(-4, os.SEEK_END)
        tail = file.read()
        file.seek(0)
    cause = whole_file_cause(head, tail)
    if cause is not None:
        raise BadInputError(f"{name} {cause}")
    text = head.removeprefix(BOM).lstrip()
    if not text:
        raise BadInputError(f"{name} holds no records: it is empty")
    plain_name = PurePath(name)
    while plain_name.suffix.lower() in _PACKED_SUFFIXES:
        plain_name = plain_name.with_suffix("")
    columns = _csv_columns(text, plain_name.suffix.lower())
    if columns is not None:
        return Detected("csv", layout_of_columns(columns, name))
    return Detected(_container(text, plain_name.name), _layout(text))


def _csv_columns(text: bytes, suffix: str) -> list[str] | None:
    """The header's columns when the file is named CSV or its first line is a header that fits a layout."""
    if text[:1] in (b"{", b"["):
        return None
    header = text.split(b"\n")[0].decode("utf-8", "replace")
    try:
        cells = next(csv.reader([header.strip("\r")], delimiter=delimiter_of(header)), [])
    except csv.Error:  # a lone carriage return: no header
        return None
    columns = [cell.strip() for cell in cells]
    fits = len(columns) > 1 and layout_of(columns) is not None
    return columns if fits or suffix in (".csv", ".tsv") else None


def _container(text: bytes, name: str) -> Container:
    suffix = PurePath(name).suffix.lower()
    lines = [line.strip() for line in text.split(b"\n")[:50]]
    first = text[:1]
    if first == b"{" and _spans_lines(text):
        return "json"
    if first == b"[":
        alone = suffix in (".jsonl", ".ndjson") and lines[0] != b"["
        return "jsonl" if alone and any(_is_object(line) for line in lines[1:]) else "json"
    if suffix in (".jsonl", ".ndjson") or any(_is_object(line) for line in lines):
        return "jsonl"
    if first == b"{":
        # A first line longer than the head is one record a line; a short one that is not an object opens a record.
        return "jsonl" if len(lines) == 1 and suffix != ".json" else "json"
    raise BadInputError(
        f"{name} is neither JSON Lines, a JSON array, CSV, Parquet nor Arrow: it starts with "
        f"{text[:20].decode('latin-1')!a}; convert it, or name its format (--format) if that is a broken first record"
    )


def _spans_lines(text: bytes) -> bool:
    """Whether the first object goes on over the end of its line, as in a file written with an indent."""
    first_line, _, _ = text.partition(b"\n")
    if len(first_line) == len(text) or _is_object(first_line.strip()):
        return False
    decoded = text.decode("utf-8", "replace")
    try:
        _, end = json.JSONDecoder().raw_decode(decoded)
    except json.JSONDecodeError as error:
        # Cut off by the head alone: whatever stands there goes on, and no line of it is a record.
        cut = len(text) > HEAD_BYTES - 100 and error.pos >= len(decoded) - 100
        return cut and not any(_is_record(line.strip()) for line in text.split(b"\n"))
    except (ValueError, RecursionError):
        return False
    return "\n" in decoded[:end]


def _is_record(line: bytes) -> bool:
    if not _is_object(line.rstrip(b",")):
        return False
    return layout_of(json.loads(line.rstrip(b","))) is not None


def _is_object(line: bytes) -> bool:
    if line[:1] != b"{" or line[-1:] != b"}":
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _layout(text: bytes) -> Layout:
    found = _RECORD_KEY.search(text)
    key = found.group(1).decode() if found else "messages"
    turn = _TURN_KEY.search(text)
    if turn and key in ("messages", "conversations"):
        return "sharegpt" if turn.group(1) in (b"from", b"value") else "messages"
    return layout_of([key]) or "messages"
