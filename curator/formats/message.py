"""One turn, as a layout writes it, to a message; what cannot be kept is a problem with its own code."""

from typing import Any

from curator.canonical import Message
from curator.formats.content import MEDIA_FIELDS, media_problems, read_content
from curator.formats.rows import Problem
from curator.formats.toolcalls import CALL_KEYS, calls_from_text, read_tool_calls
from curator.formats.values import encodable, is_empty, kind

_OWN_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")} | {"function": "tool"}
# Keyed by the name of the field that holds the role.
ROLES = {
    "role": _OWN_ROLES,
    "from": {**_OWN_ROLES, "human": "user", "observation": "tool", "function_call": "assistant"}
    | dict.fromkeys(("gpt", "chatgpt", "bard", "bing"), "assistant"),
}
_CONTENT_KEY = {"role": "content", "from": "value"}
_KEPT_KEYS = ("name", "tool_call_id")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_DONE = frozenset({"role", "content", "weight", *CALL_KEYS, *_REASONING, *MEDIA_FIELDS})


def read_turns(turns: list[Any], pointer: str, problems: list[Problem]) -> list[Message]:
    """The messages of a list of turns, each in `role`/`content` or `from`/`value` form."""
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


def _role(turn: Message, key: str, pointer: str, problems: list[Problem]) -> str | None:
    if key not in turn:
        problems.append(Problem(f"{pointer}/{key}", "message_missing_key", f"the message has no {key}"))
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
        problems.append(Problem(at, "message_missing_key", f"the message has no {key}"))
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
    for name in _REASONING:
        if not is_empty(turn.get(name)):
            text = "write the reasoning into the content, in the tags of your model's template, or remove it"
            problems.append(Problem(f"{pointer}/{name}", "reasoning_content", text))
    problems += media_problems(turn, pointer)
    for key in turn:
        value = turn[key]
        if key in done or key in _DONE or value is None:
            continue
        at = f"{pointer}/{ascii(key)[1:-1].replace('~', '~0').replace('/', '~1')}"
        if key not in _KEPT_KEYS:
            problems.append(Problem(at, "unrecognized_key", "unknown in a message, and would be lost: remove it"))
        elif not isinstance(value, str):
            problems.append(Problem(at, "unrecognized_key", f"expected text, found {kind(value)}"))
        elif not encodable(value):
            problems.append(Problem(at, "invalid_unicode", "half of a surrogate pair: not a character"))
        elif value:
            message[key] = value
