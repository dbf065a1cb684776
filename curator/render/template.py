"""Chat templates in sandboxed Jinja, with the settings that the templates are written for."""

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from curator.errors import RenderError
from curator.messages import Message
from curator.render.marks import RESERVED
from curator.render.settings import DEFAULT_DATE
from curator.render.tracing import (
    Conditions,
    Content,
    InspectedError,
    written,
)

# What a template can raise on a conversation that it was not written for.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


# What turns output back into a value that the template could then read.
_CAPTURES = (
    nodes.AssignBlock,
    nodes.Block,
    nodes.CallBlock,
    nodes.Extends,
    nodes.FilterBlock,
    nodes.FromImport,
    nodes.Import,
    nodes.Include,
    nodes.Macro,
)


_CLOCK = "strftime_now"  # what transformers calls it


class _Generation(Extension):
    """Reads {% generation %} marks and keeps their body: spans are found without them."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # upstream declares a mutable set

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(lineno)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters; the templates expect plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment(day: date | None) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    del environment.filters["random"], environment.globals["lipsum"]  # one conversation has one text
    if day is not None:  # today's date would give one conversation other tokens tomorrow
        environment.globals["strftime_now"] = datetime(day.year, day.month, day.day).strftime
    return environment


def _tracing_environment(day: date | None) -> ImmutableSandboxedEnvironment:
    """The same environment, for templates that are given stand-ins for contents."""
    environment = _environment(day)
    trim = environment.filters["trim"]
    environment.finalize = written
    environment.filters["trim"] = lambda value, chars=None: (
        value.strip(chars) if isinstance(value, Content) else trim(value, chars)
    )
    for name in ("string", "iterable", "sequence"):  # what a text is
        asked = environment.tests[name]
        environment.tests[name] = lambda value, asked=asked: isinstance(value, Content) or asked(value)
    return environment


def _clock_uses(source: str) -> tuple[bool, bool]:
    """Whether a template calls the clock, and whether it also tests that there is one."""
    if _CLOCK not in source:
        return False, False
    tree = _environment(None).parse(source)
    calls = {id(call.node) for call in tree.find_all(nodes.Call)}
    uses = [name for name in tree.find_all(nodes.Name) if name.name == _CLOCK]
    return bool(uses), any(id(name) not in calls for name in uses)


class ChatTemplate:
    """A compiled chat template with the special-token names that it may print.

    `day` is the date that a template gets as today's. It is None for a template that never asks, and for one
    that asks whether there is a clock: such a template writes a date of its own unless `day` is given.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], day: date | None = None) -> None:
        self.source = source
        self._names = dict(special_tokens)
        try:
            asks, has_own = _clock_uses(source)
            self.day = (day or (None if has_own else DEFAULT_DATE)) if asks else None
            self._compiled = _environment(self.day).from_string(source)
        except jinja2.TemplateError as error:
            raise RenderError(f"the chat template does not compile: {error}", reason="bad_template") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as the template writes it; RenderError when the template refuses it."""
        try:
            return self._run(self._compiled, messages, add_generation_prompt)
        except _TEMPLATE_FAULTS as error:
            roles = ", ".join(str(message.get("role")) for message in messages[:8])
            raise RenderError(
                f"the chat template refused a conversation of roles ({roles}): {error}",
                reason="template_refused",
            ) from error

    def trace(self, messages: Sequence[Message], conditions: Conditions) -> str | None:
        """The rendering of messages whose contents are stand-ins, a pair of marks in the place of each.

        None where the template reads contents, or refuses the conversation.
        """
        if self._traced is None:
            return None
        try:
            written = self._run(self._traced, messages, False)
        except (*_TEMPLATE_FAULTS, InspectedError):
            return None
        return None if conditions.broken else written

    @cached_property
    def _traced(self) -> jinja2.Template | None:
        environment = _tracing_environment(self.day)
        tree = environment.parse(self.source)
        captures = any(tree.find(kind) for kind in _CAPTURES) or any(
            loop.recursive for loop in tree.find_all(nodes.For)
        )
        # A template that writes the renderer's own marks could not be distinguished from a content mark.
        return None if captures or RESERVED.search(self.source) else environment.from_string(self.source)

    def _run(self, template: jinja2.Template, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return template.render(
            messages=list(messages),
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._names,
        )
