"""Canonical messages and their ids: what is hashed is exactly what is stored, scored and trained.

Text becomes Unicode NFC with LF line ends and is otherwise untouched (indentation is content). The keys of a message
have one fixed order; inside tool calls and their arguments, at any depth, keys stay in the order in which they were
written: templates write them so, and the model learns it. Two files that hold the same conversation in different
formats give the same `example_id`.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import orjson

# Fixed key order of a canonical message. A key is present only when the message has it.
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "weight")
N_HEAD_WORDS = 10

Message = dict[str, Any]


def canonical_text(text: str) -> str:
    """NFC, and CRLF to LF; nothing else changes.

    Carriage returns before a line feed all go, so that a text which was translated twice (CR CR LF) is one line end
    as well, and what is canonical stays as it is.
    """
    if "\r\n" in text:
        *lines, last = text.split("\n")
        text = "\n".join([*(line.rstrip("\r") for line in lines), last])
    # The quick check is several times faster than normalising, and nearly all text is NFC already.
    return text if text.isascii() or unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _canonical_value(value: Any) -> Any:
    if isinstance(value, str):
        return canonical_text(value)
    if isinstance(value, Mapping):
        return {canonical_text(str(key)): _canonical_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical_value(item) for item in value]
    return value


def canonical_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """The messages with canonical text and key order; unknown keys must have been dealt with before."""
    return [
        {key: _canonical_value(message[key]) for key in MESSAGE_KEYS if message.get(key) is not None}
        for message in messages
    ]


def dump_messages(messages: list[Message]) -> str:
    """Canonical JSON text of canonical messages (compact, UTF-8, key order as given)."""
    return orjson.dumps(messages).decode()


def load_messages(text: str) -> list[Message]:
    """The messages behind a stored canonical JSON text."""
    messages: list[Message] = orjson.loads(text)
    return messages


def example_id(canonical_json: str | bytes) -> str:
    """128-bit BLAKE2b of the canonical JSON (text, or its UTF-8), as 32 hex digits."""
    data = canonical_json.encode() if isinstance(canonical_json, str) else canonical_json
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def openai_messages(messages: list[Message]) -> list[Message]:
    """The messages as OpenAI's chat form has tool calls: arguments as JSON text, and an id in every call and answer.

    Ids that are there stay. An answer without one belongs to the first call before it that has no answer yet, and a
    call without one takes its answer's, else a new one (`call_1`, ...).
    """
    own_ids = {call.get("id") for message in messages for call in message.get("tool_calls", ())}
    own_ids |= {message.get("tool_call_id") for message in messages}
    new_ids = (name for number in count(1) if (name := f"call_{number}") not in own_ids)
    found: list[Message] = []
    unanswered: list[dict[str, Any]] = []
    for message in messages:
        changed = dict(message)
        if message.get("tool_calls"):
            changed["tool_calls"] = [_openai_call(call) for call in message["tool_calls"]]
            unanswered = list(changed["tool_calls"])
        elif message["role"] == "tool":
            answered = _answered(unanswered, message.get("tool_call_id"))
            if answered is not None:
                unanswered = [call for call in unanswered if call is not answered]
                answered["id"] = answered["id"] or message.get("tool_call_id") or next(new_ids)
            changed["tool_call_id"] = message.get("tool_call_id") or (answered["id"] if answered else next(new_ids))
        found.append({key: changed[key] for key in MESSAGE_KEYS if key in changed})
    for call in (call for message in found for call in message.get("tool_calls", ())):
        call["id"] = call["id"] or next(new_ids)
    return found


def _openai_call(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    function = {"name": call["function"]["name"], "arguments": text if text.strip() else "{}"}
    return {"id": call.get("id"), "type": "function", "function": function}


def _answered(unanswered: list[dict[str, Any]], call_id: str | None) -> dict[str, Any] | None:
    """The call that an answer belongs to: that of its id, else the first one that has none (or any, without an id)."""
    for call in unanswered:
        if call_id is not None and call["id"] == call_id:
            return call
    return next((call for call in unanswered if call_id is None or call["id"] is None), None)


def response_head(messages: list[Message]) -> str:
    """The first ten words of the last assistant message, joined by single spaces; '' without one."""
    for message in reversed(messages):
        if message["role"] == "assistant":
            return " ".join((message.get("content") or "").split(maxsplit=N_HEAD_WORDS)[:N_HEAD_WORDS])
    return ""
