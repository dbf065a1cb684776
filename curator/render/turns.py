"""Whether a template writes the turns in their order, and answers where answers are generated.

Nothing of a template that reverses turns, or that writes roles by position or swapped, shows in the ids: every content
is in the text, and the mask falls on what the model reads as a question. Three things are held to: contents of all but
system turns stand in their order; where headers differ, they follow the role and not the position; and the text before
an answer, and before no other turn, is what the template writes as a prompt for one.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

from curator.errors import RenderError
from curator.messages import Message
from curator.render.marks import MARK, Assembled, close_mark, is_open, open_mark, strip_marks
from curator.render.presence import REASONING_TAG, as_json
from curator.render.spans import probe_prompt
from curator.render.template import ChatTemplate

# Templates may move these: Mistral's writes the system text into the last question.
_MOVABLE = frozenset({"system", "developer"})
_WORDS = {
    "system": re.compile(r"system|developer"),
    "user": re.compile(r"user|human"),
    "assistant": re.compile(r"assistant|model|gpt|bot|ai"),
}
_N_PLACES = 4  # turns from here on differ in whether their number is even

_Place = tuple[str, int, bool, bool, str, bool, str]


class TurnCheck:
    """What one template does with the order of turns and with their roles."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._known: set[_Place] = set()  # places of answers that were found to be right

    def check_order(self, messages: Sequence[Message], assembled: Assembled, dropped: Collection[int]) -> None:
        """Raise RenderError when a content stands before that of an earlier turn; those of `dropped` stand nowhere."""
        at, before = 0, 0
        for index, message in enumerate(messages):
            if message["role"] in _MOVABLE or index in dropped:
                continue
            content = message.get("content")
            if not isinstance(content, str) or not content.strip():
                continue
            places = assembled.opens.get(index) or list(_places_of(content.strip(), assembled.text, at))
            if later := [place for place in places if place >= at]:
                at, before = min(later), index
            elif places:
                raise RenderError(
                    f"the chat template writes messages[{index}] (role {message['role']}) before messages[{before}]:"
                    " its turns are not in their order, and answers would follow other questions",
                    reason="turns_reordered",
                )

    def check_roles(self, messages: Sequence[Message]) -> None:
        """Raise RenderError when a turn is written as another role's. Each kind of place is looked at once."""
        probe: list[Message] = []
        for index in range(len(messages)):
            if (place := _place(messages, index)) in self._known:
                continue
            if not probe:
                self._check_names()
                probe = [_worded(item, number) for number, item in enumerate(messages)]
            if messages[index]["role"] == "assistant":
                self._check_answer(probe, index)
            else:
                self._check_other(probe, index)
            self._known.add(place)

    def _check_answer(self, probe: Sequence[Message], index: int) -> None:
        written = self._render(probe)
        if written is None:
            return
        headers = _headers(written)
        flipped = list(probe)
        flipped[index] = {**probe[index], "role": "user"}
        if len(set(headers[1:])) > 1 and self._render(flipped) == written:
            raise _wrong_role(probe, index, "writes roles by the position of a turn")
        header = _header_of(written, index)
        # What closes the answer before may depend on whether it is the last turn.
        if header is None or index == 0 or probe[index - 1]["role"] == "assistant":
            return
        prompt, without = (self._render(probe[:index], prompt=is_prompt) for is_prompt in (True, False))
        if prompt is None or prompt == without:
            return
        tail = _plain(_after_last(prompt))
        if not (header.startswith(tail) or tail.startswith(header)):
            raise _wrong_role(probe, index, "begins an answer otherwise than the prompt that it writes for one")

    def _check_other(self, probe: Sequence[Message], index: int) -> None:
        written = self._render(probe) if self._prompt else None
        header = None if written is None else _header_of(written, index)
        if header is not None and header.endswith(self._prompt):
            raise _wrong_role(probe, index, "begins it as an answer")

    @cached_property
    def _prompt(self) -> str:
        """What the template writes where an answer is to begin, in plain form."""
        return _plain(probe_prompt(self._template))

    def _check_names(self) -> None:
        """Raise RenderError for a template that exchanges the names of roles."""
        for roles, one, other in (
            (("user", "assistant", "user", "assistant"), 1, 2),
            (("system", "user", "assistant"), 0, 1),
        ):
            probe = [_worded({"role": role, "content": "a"}, number) for number, role in enumerate(roles)]
            written = self._render(probe) or ""
            if all(
                _names_alone(_header_of(written, index) or "", _WORDS[roles[another]], _WORDS[roles[index]])
                for index, another in ((one, other), (other, one))
            ):
                raise _wrong_role(probe, one, f"calls it {roles[other]}, and turns of {roles[other]} {roles[one]}")

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str | None:
        """The rendering with marks; None where the template refuses it, or does otherwise because of the marks."""
        try:
            written = self._template.render(messages, add_generation_prompt=prompt)
            plain = [_unmarked(message) for message in messages]
            same = strip_marks(written) == self._template.render(plain, add_generation_prompt=prompt)
        except RenderError:
            return None
        return written if same else None


def _place(messages: Sequence[Message], index: int) -> _Place:
    """What a template may look at to decide how a turn begins."""
    before = messages[index - 1] if index else {}
    return (
        messages[index]["role"],
        index if index < _N_PLACES else _N_PLACES + index % 2,
        index == len(messages) - 1,
        bool(messages[index].get("tool_calls")),
        before.get("role", ""),
        bool(before.get("tool_calls")),
        messages[0]["role"],
    )


def _places_of(content: str, text: str, at: int) -> Iterator[int]:
    """Where a content without marks stands: from `at` on, else before."""
    for form in (content, *as_json(content)):
        found = text.find(form, at)
        if found >= 0 or (found := text.find(form)) >= 0:
            yield found


def _worded(message: Message, number: int) -> Message:
    """The message with two words of its own, marked, as its content."""
    if not message.get("content"):
        return message
    return {**message, "content": f"{open_mark(number)}content {number}{close_mark(number)}"}


def _unmarked(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": strip_marks(content)} if isinstance(content, str) else message


def _headers(written: str) -> list[str]:
    """What stands before each content, in the order of the text."""
    marks = list(MARK.finditer(written))
    starts = [0, *(mark.end() for mark in marks if not is_open(mark[0]))]
    ends = [mark.start() for mark in marks if is_open(mark[0])]
    return [written[start:end] for start, end in zip(starts, ends, strict=False)]


def _header_of(written: str, index: int) -> str | None:
    """What stands between the content of a message and the one before it in the text, in plain form; None without."""
    before, mark, _ = written.partition(open_mark(index))
    return _plain(_after_last(before)) if mark else None


def _after_last(written: str) -> str:
    """What stands after the last content."""
    ends = [mark.end() for mark in MARK.finditer(written)]
    return written[ends[-1] :] if ends else written


def _plain(text: str) -> str:
    """In small letters, without white space and tags of reasoning, which a prompt may have otherwise than an answer."""
    return "".join(REASONING_TAG.sub("", text).split()).casefold()


def _names_alone(header: str, wanted: re.Pattern[str], other: re.Pattern[str]) -> bool:
    return wanted.search(header) is not None and other.search(header) is None


def _wrong_role(messages: Sequence[Message], index: int, what: str) -> RenderError:
    return RenderError(
        f"the chat template writes messages[{index}] (role {messages[index]['role']}) as another role's turn: it {what}"
        ". Mend the template, or take a model with another one",
        reason="role_not_written",
    )
