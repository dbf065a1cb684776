"""Why a file holds no chat records, in words: what people name `.jsonl` and is something else.

Some files are known from their first bytes and are refused as a whole. Others are read record by record; when not one
of them can be kept, the first bytes and the codes of the refusals tell the likely cause.
"""

import re
from collections.abc import Mapping

# What data is kept in besides text, by its first bytes (ustar: those from byte 257 on).
_BINARY = (
    (b"%PDF-", "a PDF document"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"Obj\x01", "an Avro file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x04\x22\x4d\x18", "packed with LZ4"),
    (b"7z\xbc\xaf\x27\x1c", "packed with 7-Zip"),
    (b"Rar!\x1a\x07", "packed with RAR"),
    (b"\xff\x06\0\0sNaPpY", "packed with Snappy"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word document"),
)
_TAR, _TAR_AT = b"ustar", 257
_ORC = re.compile(rb"ORC[^\0-\x08\x0e-\x1f]{,250}[\0-\x08\x0e-\x1f]")  # a header of a CSV may begin with ORCID
_ENCRYPTED_PARQUET = b"PARE"  # first and last of such a file; a header of a CSV may begin with PARENT
_PICKLE = re.compile(rb"\x80[\x02-\x05](?:\x95|\]|\}|c)")
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"/?(?:\.git/)?annex/objects/")
_MARKUP = re.compile(rb"\s*<(?:!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_PYTHON = re.compile(rb"""\s*(?:messages\s+)?["\[]*\{\s*'""")
_COMMA_LINE = re.compile(rb"^\s*\{.*\},\s*$", re.MULTILINE)


def whole_file_cause(head: bytes, tail: bytes) -> str | None:
    """What a file is instead of chat data, by its first bytes and its last four; None for others."""
    if head.startswith(_LFS):
        return "is a Git LFS pointer and not the data: fetch the data with `git lfs pull`"
    if _ANNEX.match(head[:200]):
        return "is a git-annex pointer and not the data: fetch the data with `git annex get`"
    if _MARKUP.match(head):
        return "is an HTML or XML page and not the data, often an error or login page: download the file again"
    kind = next((name for magic, name in _BINARY if head.startswith(magic)), None)
    if head[_TAR_AT:].startswith(_TAR):
        kind = "a tar archive"
    elif _ORC.match(head):
        kind = "an ORC file"
    elif head.startswith(_ENCRYPTED_PARQUET) and tail == _ENCRYPTED_PARQUET:
        kind = "an encrypted Parquet file"
    elif _PICKLE.match(head):
        kind = "a pickle, which can run code when it is loaded, and which is never read"
    if kind is not None:
        return f"is {kind}: unpack or convert it to UTF-8 JSON, CSV or Parquet first"
    if _is_wide(head):
        return "looks like UTF-16 or UTF-32 without a byte order mark: convert it to UTF-8"
    return None


def _is_wide(head: bytes) -> bool:
    """Whether it begins with an ASCII character and most of every second byte is null, as in Latin text of two or four
    bytes a character."""
    sample = head[:4096]
    if len(sample) < 8 or b"\0" not in sample[:2] or not sample[:4].replace(b"\0", b"").isascii():
        return False
    return any(sample[start::2].count(0) > 0.4 * len(sample[start::2]) for start in (0, 1))


def likely_cause(head: bytes, codes: Mapping[str, int]) -> str:
    """Why no record of a file could be kept, for one whose first bytes and codes of refusals these are; "" unknown."""
    if _PYTHON.match(head):
        return "its records are printed Python objects (single quotes) and not JSON: write them with json.dumps"
    if "invalid_unicode" in codes and not _is_utf8(head):
        return "its text is not UTF-8, but perhaps Windows-1252 or Latin-1: convert it to UTF-8"
    if "invalid_json" in codes and _COMMA_LINE.search(head):
        return "its lines end in commas: it is the inside of a JSON array without its brackets"
    return ""


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.end >= len(head) and len(head) - error.start < 4
    return True
