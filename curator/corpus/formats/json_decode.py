"""JSON text to a value, strictly, with the byte at which decoding failed.

The standard library's decoder is used because it can do what faster ones do not: refuse an object that has one
key twice (another reader may take the other value), and let a lone surrogate through to a check that names
the field, where yajl would write "?" in its place without a word.
"""

import json
import sys
from collections import Counter
from typing import Any, NoReturn

from curator.corpus.formats.budget import MAX_VALUES, text_problem
from curator.corpus.formats.rows import Problem


class UndecodableError(Exception):
    """A record's text is not a JSON value; `byte_offset` is the place in the file."""

    def __init__(self, code: str, message: str, byte_offset: int) -> None:
        super().__init__(message)
        self.problem = Problem("", code, message)
        self.byte_offset = byte_offset


class _DuplicateKeyError(Exception):
    pass


class _NoConstantError(Exception):
    """NaN or an infinity."""


def decode(data: bytes, offset: int, *, cut: bool = False, max_values: int = MAX_VALUES) -> Any:
    """The JSON value in `data`, which stands at byte `offset` of its file.

    `cut` says that the file ends with this text: failing at its end is then `truncated_json`. Raises
    UndecodableError, also before decoding more than `max_values` values. NaN and Infinity are not JSON and are refused.
    """
    if over := text_problem(data, max_values):
        raise UndecodableError(over.code, over.message, offset)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if cut and error.end >= len(data):
            raise _truncated(data, offset) from error
        where = offset + error.start
        raise UndecodableError("invalid_unicode", f"byte {where} is not UTF-8: {error.reason}", where) from error
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if cut and _fails_at_end(error, text):
            raise _truncated(data, offset) from error
        where = offset + len(text[: error.pos].encode())
        raise UndecodableError("invalid_json", f"{_said(error, text)} (byte {where})", where) from error
    except _DuplicateKeyError as error:
        message = f"key {error.args[0]!r} stands twice in one object: keep one"
        raise UndecodableError("duplicate_key", message, offset) from error
    except RecursionError as error:
        raise UndecodableError("invalid_json", "nested too deeply", offset) from error
    except _NoConstantError as error:
        raise UndecodableError("invalid_json", f"{error} is not JSON: use null", offset) from error
    except ValueError as error:  # Python's own bound, whose message names a setting of Python
        text = f"a whole number of more than {sys.get_int_max_str_digits():,} digits: write it as text"
        raise UndecodableError("invalid_json", text, offset) from error


def _said(error: json.JSONDecodeError, text: str) -> str:
    if error.msg == "Extra data" and text[error.pos :].strip() == ",":
        return "a comma after the record: remove it, or write [ before the first record and ] after the last"
    return error.msg


def _truncated(data: bytes, offset: int) -> UndecodableError:
    end = offset + len(data)
    message = f"the file ends at byte {end} inside the record that starts at byte {offset}"
    return UndecodableError("truncated_json", message, end)


def _fails_at_end(error: json.JSONDecodeError, text: str) -> bool:
    if error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\"):  # half of \\u1234
        return error.pos >= len(text) - 6
    return error.pos >= len(text.rstrip()) or text[error.pos :].strip() in _CUT_LITERALS


_CUT_LITERALS = {word[:n] for word in ("true", "false", "null") for n in range(1, len(word))} | {"-"}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _DuplicateKeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return found


def _no_constant(name: str) -> NoReturn:
    raise _NoConstantError(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
