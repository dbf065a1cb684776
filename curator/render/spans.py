"""Where each assistant turn's text stands in one rendering of a conversation.

The template runs twice: once on the messages, once with marks at the ends of their contents. When taking the
marks out of the second gives the first, the marks show where the template put each content. Templates that
trim or inspect contents need the marks elsewhere, so several placements are tried in turn. A turn without
marks (tool calls, cut reasoning) is found between the text of the turns before it, with and without it.

A turn's closing marker may differ by place: Harmony ends the last answer with another token than those before it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from curator.errors import RenderError
from curator.messages import Message
from curator.render.marks import (
    Assembled,
    close_mark,
    open_mark,
    strip_marks,
)
from curator.render.presence import answer_start, visited
from curator.render.skeletons import Skeletons
from curator.render.template import ChatTemplate
from curator.render.tokenizer import GuardedTokenizer

Span = tuple[int, int]  # first character, one past the last


_SPACE = re.compile(r"\s*")


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _around(text: str, index: int) -> str:
    return open_mark(index) + text + close_mark(index)


def _inside_left(text: str, index: int) -> str:
    core = text.lstrip()
    return text[: len(text) - len(core)] + _around(core, index)


def _inside(text: str, index: int) -> str:
    core = text.strip()
    left = text[: len(text) - len(text.lstrip())] if core else text
    return left + _around(core, index) + text[len(left) + len(core) :]


_STYLES: tuple[Callable[[str, int], str], ...] = (_around, _inside, _inside_left)


def _placements(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The messages with marks, the most telling placement first; only assistant turns in the later ones."""
    for every in (True, False):
        for style in _STYLES:
            yield [
                {**message, "content": style(message["content"], index)}
                if isinstance(message.get("content"), str)
                and (every or (message["role"] == "assistant" and message["content"]))
                else message
                for index, message in enumerate(messages)
            ]


class SpanFinder:
    """Finds assistant turns in renderings of one template."""

    def __init__(self, template: ChatTemplate, guard: GuardedTokenizer, *, by_skeletons: bool = True) -> None:
        self._template = template
        self._guard = guard
        self.skeletons = Skeletons(template, guard, self._marked) if by_skeletons else None
        self._closings = self._probe_closings()

    def assemble(self, messages: Sequence[Message]) -> Assembled:
        """One rendering of escaped messages, contents marked; raises RenderError when the template refuses them."""
        return (self.skeletons and self.skeletons.fill(messages)) or self._marked(messages)

    def locate(self, assembled: Assembled, messages: Sequence[Message], wanted: Sequence[int]) -> list[Span]:
        """The spans of the wanted assistant turns in the messages' rendering, with closing marker.

        Raises RenderError when the template hides where a wanted turn stands, or writes its calls after its end.
        """
        return [self._turn(assembled, messages, index) for index in wanted]

    def closing_bytes(self, after: str, is_end: bool) -> int | None:
        """Bytes of the closing marker after an answer's content, white space before it too; 0 without one.

        `after` is the text that follows up to another content, or up to the end. None where that content may decide.
        """
        at = _skip_space(after, 0)
        ambiguous = [closing.startswith(after[place:]) for closing in self._closings for place in (0, at)]
        if not is_end and (at == len(after) or any(ambiguous)):
            return None
        return len(after[: self._with_closing(after, 0)].encode())

    def _marked(self, messages: Sequence[Message]) -> Assembled:
        direct = self._template.render(messages)
        for marked in _placements(messages):
            try:
                rendered = self._template.render(marked)
            except RenderError:  # a template may refuse what a mark does to a content
                continue
            if strip_marks(rendered) == direct:
                return self._guard.assemble(rendered)
        return self._guard.assemble(direct)

    def _turn(self, assembled: Assembled, messages: Sequence[Message], index: int) -> Span:
        opens, closes = assembled.opens.get(index, []), assembled.closes.get(index, [])
        if len(opens) > 1 or len(closes) > 1:
            raise self._hidden(index, "is written more than once")
        start = opens[0] if opens else self._start(assembled.text, messages, index)
        if closes and not messages[index].get("tool_calls"):
            return start, self._with_closing(assembled.text, closes[0])
        end = self._end_by_prefix(assembled, messages, index, start)
        if end is None:
            end = self._end_by_closing(assembled, messages, index, start)
        return start, self._with_closing(assembled.text, end)

    def _start(self, text: str, messages: Sequence[Message], index: int) -> int:
        try:
            return self._start_by_prefix(text, messages, index)
        except RenderError:
            start = self._start_by_answer(messages, index)  # a prompt that opens reasoning which the template then cuts
            if start is None:
                raise
            return start

    def _start_by_answer(self, messages: Sequence[Message], index: int) -> int | None:
        """Where the text after the turn's reasoning stands; None where a mark does not show it."""
        content: Any = messages[index].get("content")
        at = answer_start(content) if isinstance(content, str) else None
        if at is None:
            return None
        marked = list(messages)
        marked[index] = {**messages[index], "content": content[:at] + open_mark(index) + content[at:]}
        try:
            rendered = self._template.render(marked)
        except RenderError:
            return None
        found: list[int] = self._guard.assemble(rendered).opens.get(index, [])
        return found[0] if found and strip_marks(rendered) == self._template.render(messages) else None

    def _start_by_prefix(self, text: str, messages: Sequence[Message], index: int) -> int:
        """Where generation of this turn would begin."""
        before = self._prefix(messages, index, add_generation_prompt=True)
        if not text.startswith(before):
            raise self._hidden(index, "changes the turns before it")
        return len(before)

    def _end_by_prefix(self, assembled: Assembled, messages: Sequence[Message], index: int, start: int) -> int | None:
        """Where the conversation that stops after this turn ends; None when later turns change its text."""
        through = self._prefix(messages, index + 1, add_generation_prompt=False).rstrip()
        if not assembled.text.startswith(through):
            return None
        for closing in self._closings:
            if through.endswith(closing):
                return max(start, len(through) - len(closing))
        closing_at = max((through.rfind(closing, start) for closing in self._closings[:1]), default=-1)
        if closing_at < 0:
            return max(start, len(through))
        self._check_calls(assembled, messages, index, closing_at)
        return closing_at

    def _end_by_closing(self, assembled: Assembled, messages: Sequence[Message], index: int, start: int) -> int:
        """The first closing marker before the next content: no field can hold one, so it is this turn's."""
        later = [place for other, places in assembled.opens.items() if other > index for place in places]
        places = [assembled.text.find(closing, start, min(later)) for closing in self._closings if later]
        found = [at for at in places if at >= 0]
        if not found:
            raise self._hidden(index, "is written differently when turns follow it")
        self._check_calls(assembled, messages, index, min(found))
        return min(found)

    def _check_calls(self, assembled: Assembled, messages: Sequence[Message], index: int, end: int) -> None:
        """Raise RenderError where a turn's calls stand after the marker at `end`: a model that learnt to write the
        marker there stops before them, and so would training."""
        if not messages[index].get("tool_calls"):
            return
        marked = list(messages)
        marked[index] = visited(
            messages[index], lambda part, text: open_mark(index) + text if part == "tool_calls" else text
        )
        try:
            found = self._guard.assemble(self._template.render(marked))
        except RenderError:  # a template may refuse what a mark does to a text
            return
        if (found.text, found.n_controls) != (assembled.text, assembled.n_controls):
            return
        if any(at > end for at in found.opens.get(index, ())):
            raise self._hidden(index, "has its tool calls after its end marker")

    def _prefix(self, messages: Sequence[Message], n_messages: int, *, add_generation_prompt: bool) -> str:
        try:
            rendered = self._template.render(messages[:n_messages], add_generation_prompt=add_generation_prompt)
        except RenderError as error:
            raise self._hidden(n_messages - (not add_generation_prompt), "needs its later turns") from error
        return self._guard.assemble(rendered).text

    def _with_closing(self, text: str, end: int) -> int:
        after_space = _skip_space(text, end)
        for closing in self._closings:
            for at in (end, after_space):
                if text.startswith(closing, at):
                    return at + len(closing)
        return end

    def _probe_closings(self) -> list[str]:
        """What the template writes between an assistant content's end and the turn's closing control token.

        That of a final turn comes first, then that of a turn which others follow, where it is another. None when it
        closes turns with no control token, or refuses every probe.
        """
        tail, between = probe_tail(self._template), probe_between(self._template)
        final = self._through_control(tail or "")
        earlier = self._through_control(between or "")
        if (final and self._guard.assemble(between or "").text.startswith(final)) or self._opens_turn(earlier):
            earlier = ""
        return [closing for closing in (final, earlier) if closing]

    def _through_control(self, written: str) -> str:
        """What a template wrote, up to and including its first control token; "" without one."""
        text = self._guard.assemble(written).text
        return text[: self._guard.first_control_end(text)]

    def _opens_turn(self, text: str) -> bool:
        """Whether the control token at the text's end is one that turns begin with: then nothing closes them."""
        header = self._guard.assemble(probe_header(self._template)).text
        openers = self._guard.control_texts_in(header)
        prompt = self._guard.control_texts_in(self._guard.assemble(probe_prompt(self._template)).text)
        return text.endswith(tuple(prompt[:1] or openers)) if text else False

    @staticmethod
    def _hidden(index: int, what: str) -> RenderError:
        return RenderError(
            f"the chat template hides the response tokens of messages[{index}]: the turn {what}",
            reason="span_not_found",
        )


def _probe(template: ChatTemplate, messages: list[Message]) -> str | None:
    try:
        return template.render(messages)
    except RenderError:
        return None


def probe_user(template: ChatTemplate) -> str | None:
    """A rendering of one short user turn; None when the template refuses it."""
    return _probe(template, [{"role": "user", "content": "a"}])


def probe_tail(template: ChatTemplate) -> str | None:
    """What the template writes after the content of a final assistant turn; None when it refuses."""
    answer: Message = {"role": "assistant", "content": "b" + close_mark(0)}
    for opening in (
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        [],
    ):
        rendered = _probe(template, [*opening, answer])
        if rendered is not None and close_mark(0) in rendered:
            return rendered.rpartition(close_mark(0))[2]
    return None


def probe_between(template: ChatTemplate) -> str | None:
    """What stands between the content of an assistant turn and that of the user's next; None when it refuses."""
    messages: list[Message] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b" + close_mark(1)},
        {"role": "user", "content": open_mark(2) + "c"},
    ]
    for closing in ([], [{"role": "assistant", "content": "d"}]):
        rendered = _probe(template, [*messages, *closing])
        if rendered is not None and close_mark(1) in rendered:
            _, _, after = rendered.partition(close_mark(1))
            between, mark, _ = after.partition(open_mark(2))
            return between if mark else None
    return None


def probe_prompt(template: ChatTemplate) -> str:
    """What the template adds where an answer is to begin; "" when that is nothing."""
    try:
        without = template.render([{"role": "user", "content": "a"}])
        prompt = template.render([{"role": "user", "content": "a"}], add_generation_prompt=True)
    except RenderError:
        return ""
    return prompt.removeprefix(without) if prompt.startswith(without) else ""


def probe_header(template: ChatTemplate) -> str:
    """What the template writes before the content of a first user turn."""
    rendered = _probe(template, [{"role": "user", "content": open_mark(0) + "a"}]) or ""
    before, mark, _ = rendered.partition(open_mark(0))
    return before if mark else ""
