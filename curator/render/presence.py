"""What a template leaves out of a conversation: contents, tool calls, reasoning.

A template may have no place for a role or for tool calls, may write the first call alone, or cut what stands before
`</think>`. Nothing of that shows in the ids, and a turn without its text would train its closing marker alone. So every
part is looked for in the text: contents by the marks that the spans are found with, and what those do not settle by
another rendering with marks around each piece. Where marks change what the template does, the text itself is searched,
as often as the conversation holds it: a template may write the first of two equal turns alone. Numbers of a call's
arguments cannot be marked: another number in their place must change the text.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from curator.errors import RenderError
from curator.messages import Message
from curator.render.marks import ESCAPE, Assembled, close_mark, open_mark, strip_marks
from curator.render.settings import Part
from curator.render.template import ChatTemplate
from curator.render.tokenizer import GuardedTokenizer

REASONING_TAG = re.compile(r"</?(?:think|thinking|thought|reasoning)>|\[/?THINK\]")
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_MAX_MARKS = 60_000  # of the 65,536 that there are; more pieces are searched for as text

_MAX_VALUES = 64  # of one message that are tried one by one
_Scalar = int | float | bool | None
_Visit = Callable[[Part, str], str]  # a piece of a message, to what shall stand in its place


@dataclass(frozen=True)
class Dropped:
    """A part of message `index` that the template did not write; `whole`: nor anything else of that message."""

    index: int
    part: Part
    whole: bool


@dataclass
class _Piece:
    """A text of a message that must be in the rendering; `found` is None until it is settled."""

    index: int
    part: Part
    text: str
    found: bool | None = None


class PresenceCheck:
    """Looks for the parts of conversations in what one template wrote."""

    def __init__(self, template: ChatTemplate, guard: GuardedTokenizer) -> None:
        self._template, self._guard = template, guard

    def dropped(self, messages: Sequence[Message], assembled: Assembled) -> list[Dropped]:
        """The parts of escaped messages that are not in their rendering, each part of a message once."""
        pieces = {
            index: _pieces(message, index)
            for index, message in enumerate(messages)
            if not self._is_marked(message, index, assembled)
        }
        if not any(pieces.values()):
            return []
        if not self._settle(messages, pieces):
            for index, own in pieces.items():
                self._settle(messages, {index: own})
        if any(piece.found is None for own in pieces.values() for piece in own):
            self._count(messages, pieces, assembled.text)
        for index, own in pieces.items():
            if not all(piece.found is False for piece in own) and self._lacks_values(messages, index):
                own.append(_Piece(index, "tool_calls", "", found=False))
        return [item for own in pieces.values() for item in _dropped(own)]

    def _is_marked(self, message: Message, index: int, assembled: Assembled) -> bool:
        """Whether the marks show the whole of a message that has nothing but a content."""
        if message.get("tool_calls") or any(message.get(name) for name in _REASONING_FIELDS):
            return False
        content = message.get("content")
        if not isinstance(content, str):
            return content is None
        core = content.strip()
        return not core or self._stands(core, index, assembled)

    def _settle(self, messages: Sequence[Message], pieces: Mapping[int, Sequence[_Piece]]) -> bool:
        """Look for pieces by marks around each; False where marks change what the template does."""
        if sum(map(len, pieces.values())) > _MAX_MARKS:
            return False
        numbers = count()

        def mark(_part: Part, text: str) -> str:
            number = next(numbers)
            return open_mark(number) + text + close_mark(number)

        marked = [visited(item, mark) if index in pieces else item for index, item in enumerate(messages)]
        try:
            rendered = self._template.render(marked)
            if strip_marks(rendered) != self._template.render(messages):
                return False
            assembled = self._guard.assemble(rendered)
        except RenderError:  # a template may refuse what a mark does to a text
            return False
        for number, piece in enumerate(piece for own in pieces.values() for piece in own):
            piece.found = self._stands(piece.text, number, assembled)
        return True

    def _count(self, messages: Sequence[Message], pieces: Mapping[int, Sequence[_Piece]], written: str) -> None:
        """Settle the pieces that marks did not: of those with one text, the first ones are found, as many as the
        rendering has beside what the template says itself and what is part of longer pieces."""
        every = [
            piece for index, message in enumerate(messages) for piece in pieces.get(index) or _found(message, index)
        ]
        own = self._own_text(messages)
        open_pieces: dict[str, list[_Piece]] = {}
        for piece in every:
            if piece.found is None:
                open_pieces.setdefault(piece.text, []).append(piece)
        for text in sorted(open_pieces, key=len, reverse=True):
            plain = self._plain(text)
            forms = {plain, *as_json(plain)}
            n_left = sum(written.count(form) - own.count(form) for form in forms)
            n_left -= sum(piece.text.count(text) for piece in every if piece.found)
            for place, piece in enumerate(open_pieces[text]):
                piece.found = place < n_left

    def _lacks_values(self, messages: Sequence[Message], index: int) -> bool:
        """Whether a number, truth value or null in the arguments of a message's calls makes no difference to the text:
        other numbers are looked for in it all at once, and what is not found is changed alone."""
        values: list[_Scalar] = []

        def collect(value: _Scalar) -> _Scalar:
            values.append(value)
            return value

        visited(messages[index], _same, collect)
        if not values:
            return False
        others = [_other(value, number) for number, value in enumerate(values)]
        text = self._with_values(messages, index, dict(enumerate(others)))
        unseen = [
            number
            for number, other in enumerate(others)
            if text is None or isinstance(other, bool) or other is None or str(other) not in text
        ]
        before = self._template.render(messages) if unseen else ""
        return any(
            self._with_values(messages, index, {number: others[number]}) == before for number in unseen[:_MAX_VALUES]
        )

    def _with_values(self, messages: Sequence[Message], index: int, values: Mapping[int, _Scalar]) -> str | None:
        """The rendering with some values of a message's calls exchanged, by their number; None when it is refused."""
        numbers = count()
        changed = list(messages)
        changed[index] = visited(messages[index], _same, lambda value: values.get(next(numbers), value))
        try:
            return self._template.render(changed)
        except RenderError:
            return None

    def _own_text(self, messages: Sequence[Message]) -> str:
        """What the template writes around pieces that say nothing; "" when it refuses them."""
        numbers = count()

        def blank(_part: Part, _text: str) -> str:
            number = next(numbers) % _MAX_MARKS
            return open_mark(number) + close_mark(number)

        try:
            return self._guard.assemble(self._template.render([visited(item, blank) for item in messages])).text
        except RenderError:
            return ""

    def _stands(self, text: str, number: int, assembled: Assembled) -> bool:
        """Whether the text stands between its marks as it is, white space around it aside, or as JSON writes it."""
        opens, closes = assembled.opens.get(number), assembled.closes.get(number)
        if not opens or not closes:
            return False
        written, plain = assembled.text[opens[0] : closes[0]].strip(), self._plain(text)
        return written == plain or written in as_json(plain)

    def _plain(self, text: str) -> str:
        """Escaped text as it stands in assembled text."""
        return self._guard.assemble(text).text if ESCAPE in text else text


def answer_start(content: str) -> int | None:
    """Where the text after the last reasoning tag begins; None without such a tag or text."""
    ends = [tag.end() for tag in REASONING_TAG.finditer(content)]
    if not ends or not content[ends[-1] :].strip():
        return None
    return len(content) - len(content[ends[-1] :].lstrip())


def as_json(text: str) -> tuple[str, str]:
    """A text as it stands in JSON, with other letters than ASCII as they are, and escaped."""
    return json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]


def _dropped(own: Sequence[_Piece]) -> Iterator[Dropped]:
    """What one message lacks."""
    whole = not any(piece.found for piece in own)
    for part in dict.fromkeys(piece.part for piece in own if not piece.found):
        yield Dropped(own[0].index, part, whole)


def _pieces(message: Message, index: int) -> list[_Piece]:
    found: list[_Piece] = []

    def collect(part: Part, text: str) -> str:
        found.append(_Piece(index, part, text))
        return text

    visited(message, collect)
    return found


def _found(message: Message, index: int) -> list[_Piece]:
    """The pieces of a message whose marks show all of them."""
    return [replace(piece, found=True) for piece in _pieces(message, index)]


def _same(_part: Part, text: str) -> str:
    return text


def _as_it_is(value: _Scalar) -> _Scalar:
    return value


def _other(value: _Scalar, number: int) -> _Scalar:
    """Another value of the same type; a number that hardly stands anywhere else."""
    if value is None:
        return False
    if isinstance(value, bool):
        return not value
    return 7_340_131 + number if isinstance(value, int) else 7_340_131.25 + number


def visited(message: Message, visit: _Visit, scalar: Callable[[_Scalar], _Scalar] = _as_it_is) -> Message:
    """The message with every text that a template has to write replaced by what `visit` makes of it, in one order, and
    every other value in the arguments of calls by what `scalar` makes of it."""
    changed = dict(message)
    content = message.get("content")
    if isinstance(content, str):
        changed["content"] = _visited_content(content, visit)
    elif isinstance(content, list):
        changed["content"] = [
            {**item, "text": _cored(item["text"], "content", visit)}
            if isinstance(item, Mapping) and isinstance(item.get("text"), str)
            else item
            for item in content
        ]
    for name in _REASONING_FIELDS:
        if isinstance(message.get(name), str):
            changed[name] = _cored(message[name], "reasoning", visit)
    if isinstance(message.get("tool_calls"), list):
        changed["tool_calls"] = [_visited_call(call, visit, scalar) for call in message["tool_calls"]]
    return changed


def _visited_content(content: str, visit: _Visit) -> str:
    """Cut at reasoning tags: what stands before the last one is reasoning."""
    done, written = 0, ""
    for tag in REASONING_TAG.finditer(content):
        written += _cored(content[done : tag.start()], "reasoning", visit) + tag[0]
        done = tag.end()
    return written + _cored(content[done:], "content", visit)


def _visited_call(call: Any, visit: _Visit, scalar: Callable[[_Scalar], _Scalar]) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _visited_call(call["function"], visit, scalar)}
    return {
        key: _visited_value(item, visit, scalar) if key in ("name", "arguments") else item for key, item in call.items()
    }


def _visited_value(value: Any, visit: _Visit, scalar: Callable[[_Scalar], _Scalar]) -> Any:
    """Keys, texts and other values at any depth."""
    if isinstance(value, str):
        return _cored(value, "tool_calls", visit)
    if isinstance(value, Mapping):
        return {_cored(key, "tool_calls", visit): _visited_value(item, visit, scalar) for key, item in value.items()}
    return [_visited_value(item, visit, scalar) for item in value] if isinstance(value, list) else scalar(value)


def _cored(text: str, part: Part, visit: _Visit) -> str:
    """Without the white space at its ends, which templates trim."""
    core = text.strip()
    if not core:
        return text
    at = text.index(core)
    return text[:at] + visit(part, core) + text[at + len(core) :]
