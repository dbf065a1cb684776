"""The real parsers of every command, reached as a user reaches them and stopped before anything runs."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from curator.cli.front import FIRST_PAGE, LAB_PAGE, SECOND_PAGE
from curator.cli.front import main as front_main
from curator.console import CommandParser, OldName


class _Parsed(BaseException):  # not an Exception, so that no command handles it
    """A command line that was parsed: by which parser, and to what."""

    def __init__(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        self.parser, self.namespace = parser, args


@contextmanager
def _stopping(monkeypatch: pytest.MonkeyPatch, *, before: bool) -> Iterator[None]:
    """Commands end where their words are parsed (`before`: where they would be)."""

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
            raise _Parsed(self, argparse.Namespace() if before else original(self, args, namespace))

        return stop

    with monkeypatch.context() as patched:
        for kind in (argparse.ArgumentParser, CommandParser):
            patched.setattr(kind, "parse_args", stopping(kind.parse_args))
        yield


def parse(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What `ballast WORDS` is parsed to; SystemExit where its parser refuses them."""
    with _stopping(monkeypatch, before=False):
        try:
            code = front_main(words)
        except _Parsed as found:
            return found.namespace
    raise AssertionError(f"ballast {' '.join(words)} ended with {code} before its words were parsed")


def parser_of(verb: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The whole parser of a verb (`("lab", "nll")`), its subcommands within it."""
    with _stopping(monkeypatch, before=True):
        try:
            front_main(list(verb))
        except _Parsed as found:
            return found.parser
    raise AssertionError(f"ballast {' '.join(verb)} has no parser")


def all_verbs() -> list[tuple[str, ...]]:
    """Every verb of `ballast`, those of the lab behind its name."""
    return [*((name,) for name in (*FIRST_PAGE, *SECOND_PAGE)), *(("lab", name) for name in LAB_PAGE)]


def commands_of(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of a parser's own commands."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [child for action in found for child in action.choices.values()]


def old_names_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, str]]:
    """Every former name of an option: the command that takes it, that name and the present one."""
    for child in commands_of(parser):
        yield from old_names_of(child)
    for action in parser._actions:
        if isinstance(action, OldName):
            yield parser.prog.removeprefix("ballast "), action.option_strings[0], action.present.option_strings[0]


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.Action]]:
    """Every long option, by its present name, of a parser and of its subcommands: command, name and action."""
    for child in commands_of(parser):
        yield from options_of(child)
    for action in parser._actions:
        for name in action.option_strings if not isinstance(action, OldName) else ():
            if name.startswith("--") and name not in ("--help", "--help-all", "--version"):
                yield parser.prog.removeprefix("ballast "), name, action
