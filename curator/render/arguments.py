"""Arguments of tool calls in the form that a template writes: an object, or JSON text.

Data sets have both, and so have templates. A template made for objects encodes a text a second time or refuses it;
one made for texts joins them to others, where an object is an error or comes out as Python writes it. Which a template
takes is found once, by probes; a call keeps its own form wherever the template writes that.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

from curator.errors import RenderError
from curator.messages import Message
from curator.render.template import ChatTemplate

_OBJECT = {"kept_key": "kept value", "other_key": [7]}
_TEXT = json.dumps(_OBJECT)


class ArgumentForms:
    """What one template does with arguments."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def fit(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        """The messages with every call's arguments as the template writes them."""
        return [self._message(message) for message in messages]

    def _message(self, message: Mapping[str, Any]) -> Message:
        calls = message.get("tool_calls")
        if not isinstance(calls, list) or not calls:
            return dict(message)
        return {**message, "tool_calls": [self._call(call) for call in calls]}

    def _call(self, call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._function(call["function"])}
        return self._function(call)

    def _function(self, function: Mapping[str, Any]) -> Mapping[str, Any]:
        arguments = function.get("arguments")
        if isinstance(arguments, str) and self._takes_objects and not self._takes_texts:
            found = _object(arguments)
            return function if found is None else {**function, "arguments": found}
        if isinstance(arguments, Mapping) and self._takes_texts and not self._takes_objects:
            return {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return function

    @cached_property
    def _takes_objects(self) -> bool:
        """Whether an object's keys and values are written, otherwise than Python writes them."""
        found = self._probe(_OBJECT)
        return found is not None and "kept_key" in found and "kept value" in found and "'kept_key'" not in found

    @cached_property
    def _takes_texts(self) -> bool:
        """Whether a text is written as it stands, and not once more as a JSON text."""
        found = self._probe(_TEXT)
        return found is not None and _TEXT in found

    def _probe(self, arguments: Any) -> str | None:
        for conversation in _probes(arguments):
            try:
                return self._template.render(conversation)
            except RenderError:
                continue
        return None


def _object(text: str) -> dict[str, Any] | None:
    """The object that a JSON text is, an empty text being one without keys; None for others.

    Raises RenderError for an object that would lose a value, or that is not JSON.
    """
    if not text.strip():
        return {}
    try:
        found = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RenderError:  # a ValueError, too
        raise
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise RenderError(
            f"the arguments of a tool call have the key {twice!r} twice, and the template writes an object: keep one",
            reason="invalid_arguments",
        )
    return found


def _no_constant(name: str) -> NoReturn:
    raise RenderError(f"the arguments of a tool call hold {name}, which is not JSON", reason="invalid_arguments")


def _probes(arguments: Any) -> Iterator[list[Message]]:
    """Conversations with one call; nine letters and digits are an id to every template."""
    call = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    asked: Message = {"role": "user", "content": "a"}
    called: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    answers: list[Message] = [
        {"role": "tool", "content": "b", "tool_call_id": "call00001", "name": "probe"},
        {"role": "assistant", "content": "c"},
    ]
    yield [asked, called, *answers]
    yield [asked, called]
    yield [{"role": "system", "content": "s"}, asked, called, *answers]
