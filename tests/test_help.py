"""Every command's help, by its own parser: each option is explained, few are listed, examples can be typed."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from curator.__main__ import COMMANDS
from tests.parsers import all_verbs, commands_of, parse, parser_of
from tests.test_examples import words_of

MAX_LISTED = 25
_COMMAND = r"(?:ballast|python -m (?:curator|api|trainer)[\w.]*)"


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The commands that do something: a parser, or those below it."""
    below = commands_of(parser)
    return [leaf for child in below for leaf in leaves(child)] if below else [parser]


def listed(parser: argparse.ArgumentParser) -> set[str]:
    """The options that `--help` shows, but for itself and `--help-all`."""
    found = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", parser.format_help(), re.M))
    return found - {"--help", "--help-all", "--version"}


def example_lines(text: str) -> Iterator[str]:
    """Commands of the product that a help shows on lines of their own, continued lines joined."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        found = re.match(
            r"\s{2,}((?:ballast|python -m (?:curator|api|trainer)[\w.]*) .*?)(?:\s{3,}.*|\s+\([^)]*\))?$", line
        )
        if found and "..." not in line and not re.search(r" [A-Z]+\|[A-Z]+|COMMAND", line):
            yield found[1]


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every parser by the words that lead to it: of verbs and of their commands."""
    found: dict[str, argparse.ArgumentParser] = {}
    with pytest.MonkeyPatch.context() as patch:
        for verb in all_verbs():
            parser = parser_of(verb, patch)
            chosen = [item for item in commands_of(parser) if item.prog.split()[-1] == verb[-1]]
            found[" ".join(verb)] = chosen[0] if chosen else parser  # curator's parser has stubs of the other verbs
    return found


def commands(parsers: dict[str, argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    return [leaf for parser in parsers.values() for leaf in leaves(parser)]


def test_every_option_of_every_command_is_explained(parsers: dict[str, argparse.ArgumentParser]) -> None:
    found = commands(parsers)
    assert len(found) > 45
    bare = [
        f"{parser.prog} {action.option_strings[0] if action.option_strings else action.dest}"
        for parser in found
        for action in parser._actions
        if action.help is None
    ]
    assert bare == []


def test_no_help_shows_a_type_or_a_value_of_python(parsers: dict[str, argparse.ArgumentParser]) -> None:
    odd = [
        f"{parser.prog} {action.option_strings}: {action.metavar} {action.help}"
        for parser in commands(parsers)
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and (
            action.metavar in ("str", "int", "float", "bool", "JSON")
            or re.search(r"\(default: (?:\)|null|None|False|True|\[|PosixPath|\d+\.0\) \[env)", action.help or "")
        )
    ]
    assert odd == []


def test_every_command_says_what_it_does_and_lists_at_most_25_options(
    parsers: dict[str, argparse.ArgumentParser],
) -> None:
    assert [parser.prog for parser in commands(parsers) if not parser.format_help().startswith("usage: ")] == []
    counts = {parser.prog: len(listed(parser)) for parser in commands(parsers)}
    assert {name: n for name, n in counts.items() if n > MAX_LISTED} == {}
    silent = [name for name, parser in parsers.items() if not (parser.description or "").strip()]
    assert silent == []


def test_every_command_takes_help_all(
    parsers: dict[str, argparse.ArgumentParser], capsys: pytest.CaptureFixture[str]
) -> None:
    for parser in commands(parsers):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(["--help-all"])
        assert (ended.value.code, capsys.readouterr().out[:7]) == (0, "usage: "), parser.prog


def test_every_command_of_curator_shows_an_example(parsers: dict[str, argparse.ArgumentParser]) -> None:
    found = {words.split()[-1]: parser.format_help() for words, parser in parsers.items()}
    assert [name for name in COMMANDS if f"python -m curator {name}" not in found[name]] == []


def test_every_example_in_a_help_is_one_that_its_parser_takes(
    parsers: dict[str, argparse.ArgumentParser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("models/instruct", "RUN/adapter"):  # a model's folder has to be there
        (tmp_path / folder).mkdir(parents=True)
    texts = {parser.prog: (parser.description or "") + "\n" + (parser.epilog or "") for parser in parsers.values()}
    texts |= {parser.prog: (parser.description or "") + "\n" + (parser.epilog or "") for parser in commands(parsers)}
    lines = sorted({line for text in texts.values() for line in example_lines(text)})
    assert len(lines) > 60
    refused = []
    for line in lines:
        try:
            parse(words_of(line), monkeypatch)
        except (SystemExit, AssertionError) as error:
            refused.append(f"{line}: {error}")
    assert refused == []
