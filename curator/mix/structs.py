"""Conversations as lists of structs, for data frames and data sets: one Arrow type from the keys that messages have."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from curator.messages import MESSAGE_KEYS, Message


def message_keys(conversations: Iterable[Iterable[Message]]) -> tuple[str, ...]:
    """The keys that any of the messages has, in their fixed order."""
    found = {key for messages in conversations for message in messages for key in message}
    return tuple(key for key in MESSAGE_KEYS if key in found)


def messages_type(keys: Sequence[str], arguments: pa.DataType) -> pa.DataType:
    """The Arrow type of conversations whose messages have these keys.

    `arguments` is the type of a tool call's arguments, which differ from call to call, so that no struct fits them
    all: JSON, or its text.
    """
    function = pa.struct([("name", pa.string()), ("arguments", arguments)])
    call = pa.struct([("type", pa.string()), ("id", pa.string()), ("function", function)])
    types = {"tool_calls": pa.list_(call), "weight": pa.int64()}
    return pa.list_(pa.struct([(key, types.get(key, pa.string())) for key in keys]))


def message_structs(conversations: Sequence[Sequence[Message]], keys: Sequence[str]) -> pa.Array:
    """Conversations as Arrow structs; keys that a message lacks are null, arguments of tool calls JSON text."""
    plain = [[_plain(message) for message in messages] for messages in conversations]
    return pa.array(plain, messages_type(keys, pa.string()))


def _plain(message: Message) -> Mapping[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _json(arguments: Any) -> str:
    """JSON text; text that is JSON stays as it is, as `datasets` reads it."""
    if isinstance(arguments, str):
        try:
            orjson.loads(arguments)
        except orjson.JSONDecodeError:
            return orjson.dumps(arguments).decode()
        return arguments
    return orjson.dumps(arguments).decode()
