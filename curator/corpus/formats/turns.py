"""One turn, as a layout writes it, to a message; what cannot be kept is a problem with its own code.

A message's content is one text, or parts that are all text and are joined as they stand. Tool calls get one form:
`{"type": "function", "id"?, "function": {"name", "arguments"}}`. Read are OpenAI's `tool_calls`, its older
`function_call`, calls without the `function` wrapper, and ShareGPT's `function_call` turns (JSON text). Arguments stay
what they are: an object, or text.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from curator.corpus.formats.budget import MAX_TURNS, too_many_turns
from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.corpus.formats.rows import Problem
from curator.messages import Message, canonical_text

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
            return "a key is not valid text"
        if len(set(keys)) < len(keys):
            return "two keys are one after Unicode normalisation"
        return next((fault for item in value.values() if (fault := json_fault(item))), None)
    if isinstance(value, list):
        return next((fault for item in value if (fault := json_fault(item))), None)
    if isinstance(value, str):
        return None if encodable(value) else "half of a surrogate pair: not a character"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a JSON number"
    if isinstance(value, int) and not -MAX_INT <= value < MAX_INT:
        return "a whole number over 64 bits: write it as text"
    return None if value is None or isinstance(value, bool | int | float) else f"{kind(value)} is not a JSON value"


# Types of content parts, and names of record fields that hold media, by the code that refuses them.
_MEDIA = {
    "image_content": ("image", "image_url", "input_image", "images", "image_urls"),
    "audio_content": ("audio", "audio_url", "input_audio", "audios", "speech"),
    "video_content": ("video", "video_url", "input_video", "videos"),
}
_CODE_OF = {name: code for code, names in _MEDIA.items() for name in names}
MEDIA_FIELDS = frozenset(_CODE_OF)
_SURROGATE = "half of a surrogate pair: not a character"


def media_problems(fields: dict[str, Any], pointer: str) -> list[Problem]:
    """A problem for each field of a record or message that holds images, audio or video."""
    found = [name for name in fields if name in MEDIA_FIELDS and not is_empty(fields[name])]
    return [
        Problem(f"{pointer}/{name}", _CODE_OF[name], f"{_CODE_OF[name][:5]} data cannot be kept: only text is")
        for name in found
    ]


def read_content(content: Any, at: str, problems: list[Problem]) -> str:
    """The text of a content, "" with a problem when it is none; parts are joined with nothing between them."""
    if isinstance(content, str):
        if not encodable(content):
            problems.append(Problem(at, "invalid_unicode", _SURROGATE))
        elif _PARTS_AS_TEXT.match(content) and _is_parts(content):
            problems.append(Problem(at, "data_type", "the text is a list of content parts: give the list, or its text"))
        return content
    if isinstance(content, list) and len(content) > 1 and all(isinstance(part, str) for part in content):
        several = f"{len(content)} texts in a list: write them as one, or as parts of type text that are joined"
        problems.append(Problem(at, "data_type", several))
        return ""
    if isinstance(content, list):
        return "".join(_part(part, f"{at}/{index}", problems) for index, part in enumerate(content))
    problems.append(Problem(at, "missing_content", f"expected text, found {kind(content)}"))
    return ""


# Both as JSON and as Python prints them.
_PARTS_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*(["'])(?:type|text)\1\s*:""")


def _is_parts(text: str) -> bool:
    """Whether a text, read as JSON or as Python, is a list of nothing but parts of a content."""
    if '"type"' not in text and "'type'" not in text:
        return False
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():  # of escapes that Python does not know, in a stranger's text
                warnings.simplefilter("ignore")
                parts = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return False
    return isinstance(parts, list) and all(isinstance(part, dict) and _is_part(part) for part in parts)


def _is_part(part: dict[Any, Any]) -> bool:
    name = part.get("type")
    if name == "text":
        return isinstance(part.get("text"), str) and all(is_empty(part[key]) for key in part.keys() - {"type", "text"})
    return isinstance(name, str) and name in _CODE_OF and part.keys() <= {"type", "text", name}


def _part(part: Any, at: str, problems: list[Problem]) -> str:
    if isinstance(part, str):
        return read_content(part, at, problems)
    if not isinstance(part, dict):
        problems.append(Problem(at, "data_type", f"a content part is an object, not {kind(part)}"))
        return ""
    name = part.get("type")
    code = _CODE_OF.get(name) if isinstance(name, str) else None
    if code is not None or name != "text":
        text = f"a part of type {ascii(name)[:40]} cannot be kept: only text parts are"
        problems.append(Problem(at, code or "unsupported_content_part", text))
        return ""
    for key, value in part.items():
        if key not in ("type", "text") and not is_empty(value):
            problems.append(Problem(at, "unrecognized_key", f"{ascii(key)[:40]} of a content part would be lost"))
    return read_content(part.get("text"), f"{at}/text", problems)


CODE = "invalid_tool_call"
CALL_KEYS = ("tool_calls", "function_call")


def read_tool_calls(turn: dict[str, Any], pointer: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """The calls of one message (its `tool_calls`, else its `function_call`); [] without any."""
    if turn.get("tool_calls") and turn.get("function_call"):
        problems.append(Problem(f"{pointer}/function_call", CODE, "tool_calls and function_call at once: keep one"))
        return []
    if turn.get("function_call"):
        return list(_call(turn["function_call"], f"{pointer}/function_call", problems))
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        problems.append(Problem(f"{pointer}/tool_calls", CODE, f"expected a list, found {kind(calls)}"))
        return []
    at = f"{pointer}/tool_calls"
    return [kept for index, call in enumerate(calls) for kept in _call(call, f"{at}/{index}", problems)]


def calls_from_text(text: Any, at: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """The calls of a ShareGPT `function_call` turn: one `{"name", "arguments"}` as JSON text, or a list of them."""
    try:
        value = decode(text.encode(), 0) if isinstance(text, str) and encodable(text) else text
    except UndecodableError as error:
        problems.append(Problem(at, CODE, f"a function_call turn is JSON text: {error.problem.message}"))
        return []
    calls = value if isinstance(value, list) else [value]
    return [kept for call in calls for kept in _call(call, at, problems)]


def _call(call: Any, at: str, problems: list[Problem]) -> Iterator[dict[str, Any]]:
    """The call in its one form, its keys in the writer's order, or nothing and a problem."""
    found = _fault(call)
    if found is not None:
        problems.append(Problem(at, CODE, found))
        return
    wrapped = bool(call.get("function"))
    named = call["function"] if wrapped else call
    function = {key: value for key, value in named.items() if key in ("name", "arguments")}
    kept: dict[str, Any] = {} if call.get("type") else {"type": "function"}
    for key, value in call.items():
        if key in ("id", "type") and value:
            kept[key] = value
        elif key == "function" and wrapped:
            kept["function"] = function
    yield kept if wrapped else {**kept, "function": function}


def _fault(call: Any) -> str | None:
    if not isinstance(call, dict):
        return f"a tool call is an object, not {kind(call)}"
    if call.get("type") not in (None, "function"):
        return f"a tool call of type {ascii(call['type'])[:40]}: only functions can be kept"
    function = call.get("function") or call
    if not isinstance(function, dict):
        return f"function is an object, not {kind(function)}"
    outer = {"id", "type", "index", *(("function",) if function is not call else ("name", "arguments"))}
    extra = [key for key in call if key not in outer and not is_empty(call[key])]
    if function is not call:
        extra += [key for key in function if key not in ("name", "arguments") and not is_empty(function[key])]
    if extra:
        return f"{ascii(extra[0])[:40]} of a tool call would be lost: remove it"
    if not isinstance(function.get("name"), str) or not function["name"]:
        return "the function has no name"
    if not isinstance(function.get("arguments"), str | dict):
        return f"arguments are text or an object, not {kind(function.get('arguments'))}"
    if isinstance(function["arguments"], str) and _is_encoded_twice(function["arguments"]):
        return "the arguments are JSON text inside a JSON text: decode them once"
    if call.get("id") is not None and not isinstance(call["id"], str):
        return f"a tool call's id is text, not {kind(call['id'])}"
    return json_fault([call.get("id"), function["name"], function["arguments"]])


def _is_encoded_twice(arguments: str) -> bool:
    """Whether a text is a JSON text of the text of a JSON object or list."""
    if not arguments.lstrip().startswith('"'):
        return False
    try:
        inner = json.loads(arguments)
        return isinstance(inner, str) and isinstance(json.loads(inner), dict | list | str)
    except (ValueError, RecursionError):
        return False


_OWN_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")} | {"function": "tool"}
# Keyed by the name of the field that holds the role.
ROLES = {
    "role": _OWN_ROLES,
    "from": {**_OWN_ROLES, "human": "user", "observation": "tool", "function_call": "assistant"}
    | dict.fromkeys(("gpt", "chatgpt", "bard", "bing"), "assistant"),
}
_CONTENT_KEY = {"role": "content", "from": "value"}
_KEPT_KEYS = ("name", "tool_call_id")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_FLAGS = frozenset({"train", "trainable", "train_on_turn", "loss", "loss_mask", "mask"})
_FLAG = "says which answers are trained: write it as weight, 0 (context) or 1; without it every answer is trained"
_UNKNOWN = (
    "unknown in a message, and would be lost: move it into the content, or remove it if nothing is to learn of it"
)
_DONE = frozenset({"role", "content", "weight", *CALL_KEYS, *REASONING_FIELDS, *MEDIA_FIELDS})


def read_turns(turns: list[Any], pointer: str, problems: list[Problem]) -> list[Message]:
    """The messages of a list of turns, each in `role`/`content` or `from`/`value` form."""
    if len(turns) > MAX_TURNS:
        problems.append(too_many_turns(pointer))
        return []
    keys = {key for turn in turns if isinstance(turn, dict) for key in turn}
    role_key = "from" if keys & {"from", "value"} and not keys & {"role", "content"} else "role"
    return [_message(turn, role_key, f"{pointer}/{index}", problems) for index, turn in enumerate(turns)]


def _message(turn: Any, role_key: str, pointer: str, problems: list[Problem]) -> Message:
    if not isinstance(turn, dict):
        problems.append(Problem(pointer, "data_type", f"a message is an object, not {kind(turn)}"))
        return {}
    content_key = _CONTENT_KEY[role_key]
    message: Message = {}
    role = _role(turn, role_key, pointer, problems)
    if role is not None:
        message["role"] = role
    if turn.get(role_key) == "function_call":
        message["content"] = ""
        message["tool_calls"] = calls_from_text(turn.get(content_key), f"{pointer}/{content_key}", problems)
    else:
        _body(turn, content_key, message, pointer, problems)
    _weight(turn, message, pointer, problems)
    _other_keys(turn, {role_key, content_key}, message, pointer, problems)
    return message


def _no_key(turn: Message, key: str) -> str:
    """What a message lacks, and whether it has something else in that place."""
    own = ("role", "content") if key in ("role", "content") else ("from", "value")
    others = [name for name in ("role", "content", "from", "value", "text") if name in turn and name not in own]
    but = f", but {' and '.join(others)}: a turn has role and content, or from and value" if others else ""
    return f"the message has no {key}{but}"


def _role(turn: Message, key: str, pointer: str, problems: list[Problem]) -> str | None:
    if key not in turn:
        problems.append(Problem(f"{pointer}/{key}", "message_missing_key", _no_key(turn, key)))
        return None
    role = ROLES[key].get(turn[key]) if isinstance(turn[key], str) else None
    if role is None:
        found = f"{ascii(turn[key])[:60]} is none of {', '.join(ROLES[key])}"
        problems.append(Problem(f"{pointer}/{key}", "unrecognized_role", found))
    return role


def _body(turn: Message, key: str, message: Message, pointer: str, problems: list[Problem]) -> None:
    """Content and tool calls; a message of calls alone has the content ""."""
    at = f"{pointer}/{key}"
    before = len(problems)
    calls = read_tool_calls(turn, pointer, problems)
    content = turn.get(key)
    if calls and message.get("role") not in ("assistant", None):
        text = f"only the assistant calls tools, not {message['role']}"
        problems.append(
            Problem(
                f"{pointer}/{'tool_calls' if turn.get('tool_calls') else 'function_call'}", "invalid_tool_call", text
            )
        )
    if content is None and (calls or len(problems) > before):
        content = ""
    if key not in turn and content is None:
        problems.append(Problem(at, "message_missing_key", _no_key(turn, key)))
        return
    n_problems = len(problems)
    message["content"] = read_content(content, at, problems)
    empty = not message["content"] or message["content"].isspace()
    if message.get("role") == "assistant" and empty and not calls and before == n_problems == len(problems):
        problems.append(Problem(at, "missing_content", "the assistant's answer is empty"))
    if calls:
        message["tool_calls"] = calls


def _weight(turn: Message, message: Message, pointer: str, problems: list[Problem]) -> None:
    """1 is the default and is left out, as is 0 where nothing is trained: one conversation, one spelling."""
    weight = turn.get("weight")
    if weight is None or (weight == 1 and weight is not True):
        return
    if weight != 0 or weight is False:
        problems.append(Problem(f"{pointer}/weight", "invalid_weight", "a weight is 0 or 1"))
    elif message.get("role") == "assistant":
        message["weight"] = 0


def _other_keys(turn: Message, done: set[str], message: Message, pointer: str, problems: list[Problem]) -> None:
    for name in REASONING_FIELDS:
        if not is_empty(turn.get(name)):
            text = "write the reasoning into the content, in the tags of your model's template, or remove it"
            problems.append(Problem(f"{pointer}/{name}", "reasoning_content", text))
    problems += media_problems(turn, pointer)
    for key in turn:
        value = turn[key]
        if key in done or key in _DONE or value is None or (key not in _KEPT_KEYS and is_empty(value)):
            continue
        at = f"{pointer}/{ascii(key)[1:-1].replace('~', '~0').replace('/', '~1')}"
        if key not in _KEPT_KEYS:
            problems.append(Problem(at, "unrecognized_key", _FLAG if key in _FLAGS else _UNKNOWN))
        elif not isinstance(value, str):
            problems.append(Problem(at, "unrecognized_key", f"expected text, found {kind(value)}"))
        elif not encodable(value):
            problems.append(Problem(at, "invalid_unicode", "half of a surrogate pair: not a character"))
        elif value:
            message[key] = value
