"""Small questions about decoded values that every layout asks."""

import math
from collections.abc import Mapping
from typing import Any

from curator.canonical import canonical_text

MAX_INT = 2**63  # beyond, JSON writers round or refuse
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


def kind(value: object) -> str:
    """What a value is, in words for a message."""
    return _KINDS.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def encodable(text: str) -> bool:
    """Whether the text is valid Unicode: no half of a surrogate pair stands in it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_empty(value: object) -> bool:
    """Whether an optional field says nothing: absent, null, "", [] or {}, also as JSON text."""
    return value is None or value in ("", [], {}, "[]", "{}")


def json_fault(value: Any) -> str | None:
    """Why a nested value cannot be kept exactly as it is; None when it can."""
    if isinstance(value, Mapping):
        keys = [canonical_text(key) if isinstance(key, str) and encodable(key) else None for key in value]
        if None in keys:
            return "a key is no valid text"
        if len(set(keys)) < len(keys):
            return "two keys are one after Unicode normalisation"
        return next((fault for item in value.values() if (fault := json_fault(item))), None)
    if isinstance(value, list):
        return next((fault for item in value if (fault := json_fault(item))), None)
    if isinstance(value, str):
        return None if encodable(value) else "half of a surrogate pair: not a character"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no JSON number"
    if isinstance(value, int) and not -MAX_INT <= value < MAX_INT:
        return "a whole number over 64 bits: write it as text"
    return None if value is None or isinstance(value, bool | int | float) else f"{kind(value)} is no JSON value"
