"""The completion script, in a real bash: verbs from the pages, options from the commands' own parsers."""

import argparse
import shutil
import subprocess
import sys

import pytest

from curator.cli.completion import SHELLS, script
from curator.cli.front import FIRST_PAGE, LAB_PAGE, SECOND_PAGE, main
from tests.parsers import options_of, parser_of

BASH = shutil.which("bash")
# `ballast` as an installed command would be; the words to complete are the arguments, the last one unfinished.
DRIVER = f"""
ballast() {{ {sys.executable} -m curator.cli.front "$@"; }}
eval "$(ballast completion bash)"
COMP_WORDS=(ballast "$@")
COMP_CWORD=$#
_ballast
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def complete(*words: str) -> list[str]:
    assert BASH is not None
    done = subprocess.run(
        [BASH, "-c", DRIVER, "bash", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def test_verbs_come_from_the_pages() -> None:
    assert set(complete("")) == {*FIRST_PAGE, *SECOND_PAGE, "lab", "completion"}
    assert complete("sa") == ["safeguard"]
    assert set(complete("lab", "")) == set(LAB_PAGE)
    assert complete("completion", "z") == ["zsh"]


@pytest.mark.parametrize("words", [("mix", "task.jsonl"), ("evaluate", "judge"), ("lab", "snippet")])
def test_options_are_those_of_the_command(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    verb = words[:2] if words[0] == "lab" else words[:1]
    place = " ".join(words) if words[0] == "evaluate" else verb[-1]  # curator's own need no `lab` before them
    options = options_of(parser_of(verb, monkeypatch))
    known = {name for where, name, action in options if where == place and action.help != argparse.SUPPRESS}
    found = set(complete(*words, "--")) - {"--help", "--help-all"}
    assert found == known


def test_options_begin_as_the_word_does() -> None:
    assert complete("mix", "task.jsonl", "--inter") == ["--interleave-ratio"]


def test_anything_else_is_left_to_file_names() -> None:
    assert complete("mix", "ta") == []
    assert complete("nosuch", "--x") == []


def test_both_shells_have_a_script_and_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out.rstrip() == script(shell, [*FIRST_PAGE, *SECOND_PAGE], list(LAB_PAGE)).rstrip()
    assert script("zsh", [], []).startswith("autoload -U +X bashcompinit")
    assert main(["completion", "fish"]) == main(["completion"]) == 2
    assert capsys.readouterr().err.count("give one shell") == 2
    assert main(["completion", "--help"]) == 0
