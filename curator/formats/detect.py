"""What a file is, from its first bytes; its name decides only where they leave it open."""

import json
import re
from pathlib import PurePath
from typing import BinaryIO

from curator.errors import BadInputError
from curator.formats.json_stream import BOM
from curator.formats.rows import Container, Detected, Layout

HEAD_BYTES = 64 * 1024
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_TURN_KEY = re.compile(rb'"(from|value|role|content)"\s*:')
_LIST_KEY = re.compile(rb'"(conversations|messages)"\s*:')


def detect_file(file: BinaryIO, name: str) -> Detected:
    """Container and layout of a seekable file, which is left at its start.

    Raises BadInputError for empty, compressed or UTF-16 files and where the first bytes are no JSON.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if head[:4] == b"PAR1":
        return Detected("parquet", _parquet_layout(file, name))
    for magic, kind in _PACKED.items():
        if head.startswith(magic):
            raise BadInputError(f"{name} is {kind}: unpack or convert it to UTF-8 JSON or Parquet first")
    text = head.removeprefix(BOM).lstrip()
    if not text:
        raise BadInputError(f"{name} holds no records: it is empty")
    return Detected(_container(text, name), _layout(text))


def _container(text: bytes, name: str) -> Container:
    suffix = PurePath(name).suffix.lower()
    lines = [line.strip() for line in text.split(b"\n")[:50]]
    first = text[:1]
    if first == b"[":
        alone = suffix in (".jsonl", ".ndjson") and lines[0] != b"["
        return "jsonl" if alone and any(_is_object(line) for line in lines[1:]) else "json"
    if suffix in (".jsonl", ".ndjson") or any(_is_object(line) for line in lines):
        return "jsonl"
    if first == b"{":
        # A first line longer than the head is one record a line; a short one that is no object opens a record.
        return "jsonl" if len(lines) == 1 and suffix != ".json" else "json"
    raise BadInputError(
        f"{name} is neither JSON Lines, a JSON array nor Parquet: it starts with {text[:20].decode('latin-1')!a}; "
        "convert it, or name its format (--format) if that is a broken first record"
    )


def _is_object(line: bytes) -> bool:
    if line[:1] != b"{" or line[-1:] != b"}":
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _layout(text: bytes) -> Layout:
    if turn := _TURN_KEY.search(text):
        return "sharegpt" if turn.group(1) in (b"from", b"value") else "messages"
    found = _LIST_KEY.search(text)
    return "sharegpt" if found and found.group(1) == b"conversations" else "messages"


def _parquet_layout(file: BinaryIO, name: str) -> Layout:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.ParquetFile(file).schema_arrow
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInputError(f"{name} is not a whole Parquet file: {error}") from error
    file.seek(0)
    if "messages" not in schema.names and "conversations" not in schema.names:
        columns = ", ".join(schema.names)
        raise BadInputError(f"{name} has neither a column messages nor conversations, but {columns}")
    return "messages" if "messages" in schema.names else "sharegpt"
