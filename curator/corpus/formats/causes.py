"""Why a file holds no chat records, in words: what people name `.jsonl` and is something else.

Some files are known from their first bytes and are refused as a whole. Others are read record by record; when not one
of them can be kept, the first bytes and the codes of the refusals tell the likely cause.
"""

import re
from collections.abc import Mapping

_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"/?(?:\.git/)?annex/objects/")
_MARKUP = re.compile(rb"\s*<(?:!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_PYTHON = re.compile(rb"""\s*(?:messages\s+)?["\[]*\{\s*'""")
_COMMA_LINE = re.compile(rb"^\s*\{.*\},\s*$", re.MULTILINE)


def whole_file_cause(head: bytes) -> str | None:
    """What a file is instead of chat data, by its first bytes; None for others."""
    if head.startswith(_LFS):
        return "is a Git LFS pointer and not the data: fetch the data with `git lfs pull`"
    if _ANNEX.match(head[:200]):
        return "is a git-annex pointer and not the data: fetch the data with `git annex get`"
    if _MARKUP.match(head):
        return "is an HTML or XML page and not the data, often an error or login page: download the file again"
    if _is_wide(head):
        return "looks like UTF-16 or UTF-32 without a byte order mark: convert it to UTF-8"
    return None


def _is_wide(head: bytes) -> bool:
    """Whether most of every second byte is null, as in Latin text of two or four bytes a character."""
    sample = head[:4096]
    return len(sample) >= 8 and any(sample[start::2].count(0) > 0.4 * len(sample[start::2]) for start in (0, 1))


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
