"""`ballast`: every verb that its pages list leads somewhere, under its own name, and every other is refused."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from curator.cli import COMMANDS
from curator.cli.front import FIRST_PAGE, LAB_PAGE, SECOND_PAGE, main, verbs
from curator.console import LAB_GROUP, VERBS_GROUP, as_typed, console_started
from curator.store.store import Store
from tests.parsers import all_verbs, commands_of, parser_of

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


def _both(words: list[str], tmp_path: Path, **environment: str) -> tuple[str, str]:
    """What a curator command prints when `python -m curator` started it, and when `ballast` did."""
    found = []
    for module in ("curator", "curator.cli.front"):
        done = subprocess.run(
            [sys.executable, "-m", module, *words], capture_output=True, text=True, timeout=120, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}, check=False,
        )  # fmt: skip
        found.append(done.stdout + done.stderr)
    return found[0], found[1]


def test_next_commands_errors_and_help_name_commands_as_they_were_typed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open(create=True)
    assert store
    for words, module_form, console_form in (
        (["status"], "next: python -m curator ingest FILES", "next: ballast ingest FILES"),
        (["status", "--store", "nosuch"], "`python -m curator ingest` makes one", "`ballast ingest` makes one"),
        (["mix", "--help"], "  python -m curator mix task.jsonl", "  ballast mix task.jsonl"),
        (["score", "--nosuch"], "usage: python -m curator score", "usage: ballast score"),
    ):
        plain, console = _both(words, tmp_path)
        assert module_form in plain
        assert console_form in console
        assert "python -m" not in console
        assert console == plain.replace("python -m curator", "ballast") or "usage" in plain  # usage is wrapped anew


def test_a_process_that_ballast_starts_names_commands_as_ballast_does(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'curator', 'status', '--store', 'none'])"
    with console_started(["ballast provision"]):
        inside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    outside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "`ballast ingest` makes one" in inside.stderr
    assert "`python -m curator ingest` makes one" in outside.stderr


def test_every_module_that_is_a_verb_is_named_by_its_verb() -> None:
    text = "python -m trainer.sft; python -m trainer.evaluate nll, python -m trainer.evaluate.nll."
    text += " python -m api keys list"
    assert as_typed(text) == text
    with console_started(["ballast x"]):
        assert as_typed(text) == "ballast train; ballast evaluate nll, ballast lab nll. ballast keys list"
        assert as_typed("python -m api --demo, python -m api worker") == "ballast serve --demo, ballast worker"
        assert as_typed("python -m curator.other") == "python -m curator.other"  # no command of the product
        for group in (VERBS_GROUP, LAB_GROUP):
            for name, item in verbs(group).items():
                module, _, function = item.value.partition(":")
                form = f"python -m {module.removesuffix('.__main__')}{'' if function == 'main' else f' {function}'}"
                assert as_typed(form) == f"ballast {'lab ' if group == LAB_GROUP else ''}{name}"


def test_what_a_verb_changed_in_its_process_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv)
    assert main(["status", "--store", "/nosuch"]) == 2
    assert "`ballast ingest`" in capsys.readouterr().err
    assert sys.argv == before
    assert as_typed("python -m curator") == "python -m curator"


def test_no_help_of_ballast_names_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in all_verbs():
        parser = parser_of(verb, monkeypatch)
        with console_started(["ballast"]):
            texts = [found.format_help() for found in (parser, *commands_of(parser))]
        named = [name for text in texts for name in re.findall(r"python -m (?:curator|api|trainer)\S*", text)]
        assert not named, f"{' '.join(verb)}: {named}"


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
    assert main(["mixx"]) == main(["lab", "nosuch"]) == main(["--versio"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "error: there is no verb 'mixx'; did you mean mix?; ballast --help lists them",
        "error: there is no verb 'nosuch'; ballast lab --help lists them",
        "error: there is no option '--versio'; did you mean --version?; ballast --help lists them",
    ]


def test_a_mistyped_option_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["mix", "task.jsonl", "--interleave-ration", "0.1"])
    error = capsys.readouterr().err
    assert error.startswith("usage: ballast mix ")
    assert error.rstrip().endswith("did you mean --interleave-ratio?")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ingest", "x.jsonl", "--copus", "x"], "required: --corpus; --copus: no such option; did you mean --corpus?"),
        (["mix", "task.jsonl", "--order", "evn"], "did you mean even?"),
        (["keys", "creat"], "did you mean create?"),
        (["serve", "--prot", "80"], "did you mean --port?"),
    ],
)  # fmt: skip
def test_a_mistyped_name_is_answered_with_the_nearest_one(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)


@pytest.mark.parametrize(("words", "said"), [
    (["try"], "error: try needs torch: pip install 'ballast-mix[train]'"),
    (["train"], "error: train needs safetensors: pip install 'ballast-mix[train]'"),
    (["worker"], "error: worker needs prometheus_client: pip install 'ballast-mix[api]'"),
])  # fmt: skip
def test_a_verb_whose_packages_are_absent_names_the_extra(words: list[str], said: str, tmp_path: Path) -> None:
    # As in an installation of the core: what is None in sys.modules is not found.
    absent = "import sys; sys.modules.update(dict.fromkeys(('torch', 'prometheus_client', 'safetensors')))\n"
    code = f"{absent}from curator.cli.front import main; sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (2, [said])
