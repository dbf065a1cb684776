"""Where each assistant turn's text stands in one rendering of a conversation.

The template runs twice: once on the messages, once with marks at the ends of their contents. When taking the
marks out of the second gives the first, the marks show where the template put each content. Templates that
trim or inspect contents need the marks elsewhere, so several placements are tried in turn. A turn without
marks (tool calls, dropped reasoning) is found between the text of the turns before it, with and without it.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from curator.errors import RenderError
from curator.messages import Message
from curator.render.marks import (
    Assembled,
    close_mark,
    open_mark,
    strip_marks,
)
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
        self._skeletons = Skeletons(template, guard, self._marked) if by_skeletons else None
        self._closing = self._probe_closing()

    def locate(self, messages: Sequence[Message], wanted: Sequence[int]) -> tuple[Assembled, list[Span]]:
        """One rendering of escaped messages, and the spans of the wanted assistant turns with closing marker.

        Raises RenderError when the template refuses the conversation or hides where a wanted turn stands.
        """
        assembled = (self._skeletons and self._skeletons.fill(messages)) or self._marked(messages)
        return assembled, [self._turn(assembled, messages, index) for index in wanted]

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
        start = opens[0] if opens else self._start_by_prefix(assembled.text, messages, index)
        if closes and not messages[index].get("tool_calls"):
            return start, self._with_closing(assembled.text, closes[0])
        end = self._end_by_prefix(assembled.text, messages, index, start)
        if end is None:
            end = self._end_by_closing(assembled, index, start)
        return start, self._with_closing(assembled.text, end)

    def _start_by_prefix(self, text: str, messages: Sequence[Message], index: int) -> int:
        """Where generation of this turn would begin."""
        before = self._prefix(messages, index, add_generation_prompt=True)
        if not text.startswith(before):
            raise self._hidden(index, "changes the turns before it")
        return len(before)

    def _end_by_prefix(self, text: str, messages: Sequence[Message], index: int, start: int) -> int | None:
        """Where the conversation that stops after this turn ends; None when later turns change its text."""
        through = self._prefix(messages, index + 1, add_generation_prompt=False).rstrip()
        if not text.startswith(through):
            return None
        closing_at = through.rfind(self._closing, start) if self._closing else -1
        return max(start, closing_at if closing_at >= 0 else len(through))

    def _end_by_closing(self, assembled: Assembled, index: int, start: int) -> int:
        """The first closing marker before the next content: no field can hold one, so it is this turn's."""
        later = [place for other, places in assembled.opens.items() if other > index for place in places]
        at = assembled.text.find(self._closing, start, min(later)) if later and self._closing else -1
        if at < 0:
            raise self._hidden(index, "is written differently when turns follow it")
        return at

    def _prefix(self, messages: Sequence[Message], n_messages: int, *, add_generation_prompt: bool) -> str:
        try:
            rendered = self._template.render(messages[:n_messages], add_generation_prompt=add_generation_prompt)
        except RenderError as error:
            raise self._hidden(n_messages - (not add_generation_prompt), "needs its later turns") from error
        return self._guard.assemble(rendered).text

    def _with_closing(self, text: str, end: int) -> int:
        if not self._closing:
            return end
        after_space = _skip_space(text, end)
        for at in (end, after_space):
            if text.startswith(self._closing, at):
                return at + len(self._closing)
        return end

    def _probe_closing(self) -> str:
        """What the template writes between an assistant content's end and the turn's closing control token.

        "" when it closes turns with no control token, or refuses every probe.
        """
        tail = probe_tail(self._template)
        if tail is None:
            return ""
        text = self._guard.assemble(tail).text
        return text[: self._guard.first_control_end(text)]

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
