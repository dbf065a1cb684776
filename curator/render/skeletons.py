"""What a template writes around the contents, once for all conversations of the same roles.

Most templates copy contents without reading them. For such a template a conversation's rendering is its skeleton, the
constant text for its sequence of roles, with the contents put in. A skeleton is found by rendering stand-ins
(`opaque`), which shows that nothing else decides the text; it is used after it has given what the template gives for
one conversation. Whatever has no skeleton is rendered by the template.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curator.errors import RenderError
from curator.messages import Message
from curator.render.marks import ESCAPE, Assembled, split_empty
from curator.render.template import ChatTemplate
from curator.render.tokenizer import GuardedTokenizer
from curator.render.tracing import Condition, Conditions, Content

MAX_SKELETONS = 4_096  # then all are forgotten: a corpus has far fewer sequences of roles, hostile input may not

Shape = tuple[str | tuple[str, str], ...]


@dataclass(frozen=True)
class Skeleton:
    """Constant texts, one more than the places of contents between them, and which message's content stands in each."""

    texts: tuple[str, ...]
    places: tuple[int, ...]
    n_controls: int
    conditions: tuple[Condition, ...]

    def fits(self, contents: Sequence[str]) -> bool:
        """Whether these contents meet the conditions."""
        return all(meets(contents[index]) for index, meets in self.conditions)

    def fill(self, contents: Sequence[str]) -> Assembled | None:
        """The rendering of these contents; None where one does not meet a condition."""
        if not self.fits(contents):
            return None
        pieces = [self.texts[0]]
        result = Assembled("", self.n_controls)
        at = len(self.texts[0])
        for index, text in zip(self.places, self.texts[1:], strict=True):
            content = contents[index]
            result.opens.setdefault(index, []).append(at)
            at += len(content)
            result.closes.setdefault(index, []).append(at)
            at += len(text)
            pieces += (content, text)
        result.text = "".join(pieces)
        return result


class Skeletons:
    """The skeletons of one template; `render` is the template's own way, which every skeleton is checked against."""

    def __init__(
        self, template: ChatTemplate, guard: GuardedTokenizer, render: Callable[[Sequence[Message]], Assembled]
    ) -> None:
        self._template, self._guard, self._render = template, guard, render
        self._known: dict[Shape, Skeleton | None] = {}

    def fill(self, messages: Sequence[Message]) -> Assembled | None:
        """The rendering of escaped messages, contents marked; None where the template itself is needed."""
        contents: list[Any] = [message.get("content") for message in messages]
        # Escapes are plain text to the tokenizer, so a template that wrote one would write something else here.
        if any(type(content) is not str or ESCAPE in content for content in contents):
            return None
        skeleton = self.of(messages)
        return None if skeleton is None else skeleton.fill(contents)

    def of(self, messages: Sequence[Mapping[str, Any]]) -> Skeleton | None:
        """The skeleton for messages of these roles whose contents are texts; None where there is none."""
        shape = shape_of(messages)
        if shape is None:
            return None
        if shape not in self._known:
            if len(self._known) >= MAX_SKELETONS:
                self._known.clear()
            self._known[shape] = self._find(messages)
        return self._known.get(shape)

    def _find(self, messages: Sequence[Mapping[str, Any]]) -> Skeleton | None:
        conditions = Conditions()
        stand_ins = [{**message, "content": Content(conditions, index)} for index, message in enumerate(messages)]
        written = self._template.trace(stand_ins, conditions)
        if written is None:
            return None
        texts, places = split_empty(written)
        parts = [self._guard.assemble(text) for text in texts]
        found = Skeleton(
            tuple(part.text for part in parts),
            tuple(places),
            sum(part.n_controls for part in parts),
            tuple(conditions),
        )
        return found if self._holds(found, messages) else None

    def _holds(self, skeleton: Skeleton, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether it gives what the template gives, contents being two words for each message."""
        contents = [f"content {index}" for index in range(len(messages))]
        probe = [{**message, "content": text} for message, text in zip(messages, contents, strict=True)]
        try:
            return self._render(probe) == skeleton.fill(contents)
        except RenderError:
            return False


def shape_of(messages: Sequence[Mapping[str, Any]]) -> Shape | None:
    """What skeletons are kept under: roles, and weights where there are any; None for messages with further keys."""
    shape: list[str | tuple[str, str]] = []
    for message in messages:
        if len(message) == 2:
            shape.append(message["role"])
        elif len(message) == 3 and "weight" in message:
            shape.append((message["role"], repr(message["weight"])))
        else:
            return None
    return tuple(shape)
