"""docs/options.md has every option that several commands take: one name one meaning, one meaning one name."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.parsers import all_verbs, old_names_of, options_of, parse, parser_of

PAGE = (Path(__file__).parents[1] / "docs" / "options.md").read_text()
ROWS = re.findall(r"^\| `(--[\w-]+)` \| (.+?) \|(.*)\|$", PAGE, re.M)
OLD_NAMES = re.findall(r"^\| `([a-z -]+)` \| `(--[\w-]+)` \| `(--[\w-]+)` \|$", PAGE, re.M)
COMMAND = re.compile(r"`([a-z][a-z -]+)`")


@pytest.fixture(scope="module")
def places() -> dict[str, dict[str, bool]]:
    """For each option the commands that have it, and whether it takes a value there."""
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    with pytest.MonkeyPatch.context() as patch:
        for verb in all_verbs():
            for place, name, action in options_of(parser_of(verb, patch)):
                found[name][place] = action.nargs != 0
    return found


def exceptions(text: str) -> list[str]:
    """Commands before each colon of the last column."""
    return [name for part in text.split(";") for name in COMMAND.findall(part.split(":")[0])]


def test_every_option_of_several_commands_stands_in_the_table_once(places: dict[str, dict[str, bool]]) -> None:
    assert [name for name, _, _ in ROWS] == sorted(name for name, where in places.items() if len(where) > 1)


def test_one_meaning_has_one_name() -> None:
    meanings = [meaning for _, meaning, _ in ROWS]
    assert len(set(meanings)) == len(meanings)


def test_exceptions_are_commands_that_have_the_option(places: dict[str, dict[str, bool]]) -> None:
    found = {name: exceptions(rest) for name, _, rest in ROWS}
    assert {name: absent for name, given in found.items() if (absent := set(given) - set(places[name]))} == {}
    assert sum(map(len, found.values())) <= 8  # may shrink; a new one needs a better name instead


def test_an_option_takes_a_value_everywhere_or_nowhere(places: dict[str, dict[str, bool]]) -> None:
    given = {
        name: {places[name][place] for place in set(places[name]) - set(exceptions(rest))} for name, _, rest in ROWS
    }
    assert [name for name, kinds in given.items() if len(kinds) != 1] == []


def test_old_names_stand_in_their_table_and_are_listed_by_no_help() -> None:
    with pytest.MonkeyPatch.context() as patch:
        parsers = [parser_of(verb, patch) for verb in all_verbs()]
    assert sorted(item for parser in parsers for item in old_names_of(parser)) == sorted(OLD_NAMES)
    assert len(OLD_NAMES) > 10


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["sql", "select 1", "--format", "csv"], "output_format", "csv"),
        (["monitor", "directions", "--model", ".", "--out", "x", "--set", "paper"], "trait_set", "paper"),
        (["monitor", "fit", "--out", "x", "--benign", "a", "--benign", "b"], "benign_run", [Path("a"), Path("b")]),
        (["lab", "compare", "--plan", "toy", "--work", "w", "--set", "a=1"], "override", ["a=1"]),
        (["lab", "safelora", "--adapter", ".", "--base", ".", "--aligned", "."], "aligned_model", Path()),
    ],
)
def test_an_old_name_does_what_the_present_one_does_and_names_it(
    words: list[str], name: str, value: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = parse(words, monkeypatch)
    assert str(getattr(found, name)) == str(value)
    warnings = set(capsys.readouterr().err.splitlines())
    (old,) = {word for word in words if word in {item[1] for item in OLD_NAMES}}
    assert warnings == {f"warning: {old} is called --{name.replace('_', '-')} now"}
