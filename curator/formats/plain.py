"""The quick way through the usual record: `messages` of role and content, in NFC, LF and without repeated keys.

Three library calls (decode, encode, compare) and no copy. Whatever is not plain in any respect is left
to the careful way (`decode`, `record`), so that every refusal and every rule is written once; a property test
holds the two to the same result.
"""

from types import MappingProxyType
from typing import Any
from unicodedata import is_normalized

import orjson

from curator.canonical import Message
from curator.formats.record import SPECIAL_KEYS, read_labels, read_source, read_source_id
from curator.formats.rows import LABELS, Row

_OPENING = len(b'{"messages":')
_ROLES = frozenset({"system", "developer", "user", "tool"})
_NO_LABELS: MappingProxyType[str, str | None] = MappingProxyType({})


def read_plain(data: bytes, record: int, line: int | None) -> Row | None:
    """The row of a plain record's JSON text; None when it is not plain."""
    try:
        value = orjson.loads(data)
        messages = _plain_messages(value["messages"])
    except (KeyError, TypeError, ValueError):  # JSONDecodeError is a ValueError
        return None
    if messages is None:
        return None
    json = orjson.dumps(messages)
    if not json.isascii() and not all(is_normalized("NFC", message["content"]) for message in messages):
        return None
    row = Row(record, line, None, messages, json, _NO_LABELS)
    if len(value) > 1:
        return _with_other_keys(value, data, row)
    if data.startswith(json, _OPENING) and len(data) - len(json) <= _OPENING + 2:
        return row  # what came out of the text is the text, but for `}` and a line feed
    # An object with one key twice has more quotes than what came out of it. Each message needs eight, `messages` two.
    quotes = data.count(b'"') - 2
    if quotes != 8 * len(messages) and (quotes != json.count(b'"') or b"\\u0022" in data):
        return None
    return row


def _plain_messages(turns: Any) -> list[Message] | None:
    """The messages in canonical key order; None (or an error) when canonical form changes more."""
    answered = False
    messages = []
    for turn in turns:
        first, _ = turn  # the keys, which are two
        role, content = turn["role"], turn["content"]
        if type(content) is not str or "\r" in content:
            return None
        if role == "assistant":
            if not content or content.isspace():
                return None
            answered = True
        elif role not in _ROLES:
            return None
        messages.append(turn if first == "role" else {"role": role, "content": content})
    return messages if answered else None


def _with_other_keys(value: dict[str, Any], data: bytes, row: Row) -> Row | None:
    if not SPECIAL_KEYS.isdisjoint(value) or b"\\u0022" in data:
        return None
    if orjson.dumps(value).count(b'"') != data.count(b'"'):
        return None
    # Whole numbers over 64 bits come out of this decoder rounded.
    if any(isinstance(value.get(key), float | list | dict) for key in ("id", *LABELS)):
        return None
    row.source_id = read_source_id(value)
    row.source = read_source(value)
    row.labels = read_labels(value, [])
    return row
