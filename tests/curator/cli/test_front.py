"""`ballast`: every verb that its pages list leads somewhere, under its own name, and every other is refused."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from curator.cli import COMMANDS
from curator.cli.front import FIRST_PAGE, LAB_GROUP, LAB_PAGE, SECOND_PAGE, VERBS_GROUP, main, verbs

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_pages_and_the_declared_verbs_are_one_list() -> None:
    groups = PROJECT["entry-points"]
    assert set(FIRST_PAGE) | set(SECOND_PAGE) | set(LAB_PAGE) == (
        set(COMMANDS) | set(groups[VERBS_GROUP]) | set(groups[LAB_GROUP])
    )
    assert set(groups[LAB_GROUP]) <= set(LAB_PAGE)
    assert not set(FIRST_PAGE) & set(SECOND_PAGE)


@pytest.mark.parametrize("group", [VERBS_GROUP, LAB_GROUP])
def test_every_declared_verb_is_installed_and_is_a_function(group: str) -> None:
    declared = PROJECT["entry-points"][group]
    assert {name: item.value for name, item in verbs(group).items()} == declared
    for value in declared.values():
        module, _, name = value.partition(":")
        assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("verb", ["train", "evaluate", "mix", "serve", "provision", "safeguard"])
def test_a_verb_shows_its_own_name_in_its_help(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "curator.cli.front", verb, "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: ballast {verb} ")


def test_help_lists_the_first_pages_and_help_all_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert capsys.readouterr().out.count("  safeguard ") == 2
    for words, page in ((["--help-all"], {**FIRST_PAGE, **SECOND_PAGE, **LAB_PAGE}), (["lab"], LAB_PAGE)):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert set(page) <= {line.split()[0] for line in lines if line.startswith("  ")}
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ballast ")


def test_an_unknown_verb_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mixx"]) == main(["lab", "nosuch"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: there is no verb ") for line in errors] == [True, True]


def test_a_mistyped_option_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["mix", "task.jsonl", "--interleave-ration", "0.1"])
    error = capsys.readouterr().err
    assert error.startswith("usage: ballast mix ")
    assert error.rstrip().endswith("did you mean --interleave-ratio?")
