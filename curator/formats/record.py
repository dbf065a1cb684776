"""One decoded record to canonical messages, or to the list of everything that is wrong with it.

`messages`: `{"messages": [{"role", "content"}, ...]}`. `sharegpt`: `{"conversations": [{"from", "value"}, ...]}`.
Without an override the layout is read off each record. Null fields count as absent. Keys beside the messages
are no part of the conversation: `id` becomes the source id, the four label keys become labels, others are
left behind; inside a message an unknown key is refused, for it would be lost.
"""

from dataclasses import dataclass
from typing import Any

from curator.canonical import Message, canonical_messages
from curator.formats.rows import LABELS, Layout, Problem

_OWN_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
ROLES: dict[Layout, dict[str, str]] = {
    "messages": _OWN_ROLES,
    "sharegpt": {**_OWN_ROLES, "human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bard", "bing"), "assistant"),
}
_LIST_KEY: dict[Layout, str] = {"messages": "messages", "sharegpt": "conversations"}
_ROLE_KEY: dict[Layout, str] = {"messages": "role", "sharegpt": "from"}
_CONTENT_KEY: dict[Layout, str] = {"messages": "content", "sharegpt": "value"}
_TOOL_KEYS = ("tool_calls", "function_call")
_KEPT_KEYS = ("name", "tool_call_id")


@dataclass(frozen=True)
class Read:
    """What one record gave; with any problem it is kept out."""

    messages: list[Message]
    labels: dict[str, str | None]
    source_id: str | None
    problems: list[Problem]


def read_record(value: Any, layout: Layout | None = None) -> Read:
    """Canonical messages, labels and source id of one decoded record, with every problem found."""
    if not isinstance(value, dict):
        return Read([], {}, None, [Problem("", "data_type", f"a record is an object, not {_kind(value)}")])
    problems: list[Problem] = []
    messages = _messages(value, layout, problems)
    for key in ("tools", "functions"):
        if value.get(key):
            problems.append(Problem(f"/{key}", "unsupported_content", "tool definitions are not supported yet"))
    labels = _labels(value, problems)
    source_id = value.get("id")
    source_id = str(source_id) if isinstance(source_id, str | int) else None
    if source_id is not None and not _encodable(source_id):
        problems.append(Problem("/id", "invalid_unicode", "half of a surrogate pair: not a character"))
    return Read([] if problems else canonical_messages(messages), labels, source_id, problems)


def _messages(value: dict[str, Any], layout: Layout | None, problems: list[Problem]) -> list[Message]:
    key = _LIST_KEY[layout] if layout else next((k for k in _LIST_KEY.values() if value.get(k) is not None), None)
    turns = value.get(key) if key else None
    if not isinstance(turns, list):
        names = _LIST_KEY[layout] if layout else " or ".join(_LIST_KEY.values())
        problems.append(Problem(f"/{key or 'messages'}", "missing_messages_list", f"expected a list {names}"))
        return []
    if not turns:
        problems.append(Problem(f"/{key}", "empty_messages_list", "there are no messages in it"))
        return []
    style = layout or _style(turns)
    before = len(problems)
    messages = [_message(turn, style, f"/{key}/{index}", problems) for index, turn in enumerate(turns)]
    if not any(message.get("role") == "assistant" for message in messages) and not _lost_roles(problems[before:]):
        problems.append(Problem(f"/{key}", "example_missing_assistant_message", "no assistant message to learn"))
    return messages


def _lost_roles(problems: list[Problem]) -> bool:
    """Whether a role is unknown: the missing assistant may be that one, and is no problem of its own."""
    return any(problem.code in ("unrecognized_role", "data_type") for problem in problems)


def _style(turns: list[Any]) -> Layout:
    keys = {key for turn in turns if isinstance(turn, dict) for key in turn}
    return "sharegpt" if keys & {"from", "value"} and not keys & {"role", "content"} else "messages"


def _message(turn: Any, style: Layout, pointer: str, problems: list[Problem]) -> Message:
    if not isinstance(turn, dict):
        problems.append(Problem(pointer, "data_type", f"a message is an object, not {_kind(turn)}"))
        return {}
    role_key, content_key = _ROLE_KEY[style], _CONTENT_KEY[style]
    message: Message = {}
    if role_key not in turn:
        problems.append(Problem(f"{pointer}/{role_key}", "message_missing_key", f"the message has no {role_key}"))
    elif (role := ROLES[style].get(turn[role_key]) if isinstance(turn[role_key], str) else None) is None:
        known = ", ".join(ROLES[style])
        found = ascii(turn[role_key])[:60]
        problems.append(Problem(f"{pointer}/{role_key}", "unrecognized_role", f"{found} is none of {known}"))
    else:
        message["role"] = role
    calls = [key for key in _TOOL_KEYS if turn.get(key)]
    for key in calls:
        problems.append(Problem(f"{pointer}/{key}", "unsupported_content", "tool calls are not supported yet"))
    if not calls:
        _content(turn, content_key, message, pointer, problems)
    _weight(turn, pointer, problems)
    _other_keys(turn, {role_key, content_key, "weight", *_TOOL_KEYS}, message, pointer, problems)
    return message


def _content(turn: Message, key: str, message: Message, pointer: str, problems: list[Problem]) -> None:
    at = f"{pointer}/{key}"
    content = turn.get(key)
    if key not in turn:
        problems.append(Problem(at, "message_missing_key", f"the message has no {key}"))
    elif isinstance(content, list | dict):
        problems.append(Problem(at, "unsupported_content", "content parts are not supported yet: give one text"))
    elif not isinstance(content, str):
        problems.append(Problem(at, "missing_content", f"expected text, found {_kind(content)}"))
    elif not _encodable(content):
        problems.append(Problem(at, "invalid_unicode", "half of a surrogate pair: not a character"))
    elif message.get("role") == "assistant" and not content.strip():
        problems.append(Problem(at, "missing_content", "the assistant's answer is empty"))
    message["content"] = content


def _weight(turn: Message, pointer: str, problems: list[Problem]) -> None:
    """1 is the default and is left out, so that both spellings are one conversation."""
    weight = turn.get("weight")
    if weight is None or (weight == 1 and weight is not True):
        return
    if weight == 0 and weight is not False:
        text = "weight 0 is not supported yet: its message would be trained on"
        problems.append(Problem(f"{pointer}/weight", "unsupported_content", text))
    else:
        problems.append(Problem(f"{pointer}/weight", "invalid_weight", "a weight is 0 or 1"))


def _other_keys(turn: Message, done: set[str], message: Message, pointer: str, problems: list[Problem]) -> None:
    for key in turn:
        value = turn[key]
        if key in done or value is None:
            continue
        at = f"{pointer}/{ascii(key)[1:-1].replace('~', '~0').replace('/', '~1')}"
        if key not in _KEPT_KEYS:
            problems.append(Problem(at, "unrecognized_key", "unknown in a message, and would be lost: remove it"))
        elif not isinstance(value, str):
            problems.append(Problem(at, "unrecognized_key", f"expected text, found {_kind(value)}"))
        elif not _encodable(value):
            problems.append(Problem(at, "invalid_unicode", "half of a surrogate pair: not a character"))
        elif value:
            message[key] = value


def _labels(value: dict[str, Any], problems: list[Problem]) -> dict[str, str | None]:
    labels: dict[str, str | None] = {}
    for key in LABELS:
        label = value.get(key)
        if label is None or label == "":
            continue
        if isinstance(label, bool):
            label = "true" if label else "false"
        if not isinstance(label, str | int | float):
            problems.append(Problem(f"/{key}", "invalid_label", f"expected text, found {_kind(label)}"))
        elif not _encodable(str(label)):
            problems.append(Problem(f"/{key}", "invalid_unicode", "half of a surrogate pair: not a character"))
        else:
            labels[key] = str(label)
    return labels


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
