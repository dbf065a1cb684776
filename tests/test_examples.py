"""What the documentation shows is run: commands are parsed by their real parsers, Python runs against a small store."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.settings import Settings
from curator.mix.cards import read_data_file
from tests.api.serving import running
from tests.example_store import N_EXAMPLES, write_example
from tests.parsers import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
URL = "http://127.0.0.1:8765"  # of the service in the documentation

# `python -m MODULE` is a verb of `ballast` under another name.
MODULES = {
    "api": ("serve",), "api keys": ("keys",), "api worker": ("worker",), "trainer.sft": ("train",),
    "trainer.plans.provision": ("provision",), "trainer.plans.safeguard": ("safeguard",),
    "trainer.evaluate": ("evaluate",), "trainer.organisms": ("organisms",), "trainer.persona": ("persona",),
    "trainer.monitor": ("monitor",), "trainer.evaluate.nll": ("lab", "nll"),
    "trainer.defenses.safelora": ("lab", "safelora"), "trainer.experiments.try_it": ("try",),
    "trainer.defenses.self_recognition": ("lab", "self-recognition"),
    "trainer.defenses.own_answers": ("lab", "own-answers"),
    "trainer.experiments.calibration": ("lab", "calibration"), "trainer.experiments.compare": ("lab", "compare"),
    "trainer.experiments.toy": ("lab", "toy"), "trainer.experiments.demo": ("lab", "demo"),
}  # fmt: skip


def command_lines(page: Path) -> Iterator[str]:
    """The product's commands in a page's blocks, continued lines joined; not those with `...` for what is left out."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for line in text.splitlines():
        if re.match(r"    +(ballast|python -m (curator|api|trainer)[\w.]*) ", line) and " ... " not in line:
            yield line.strip()


def words_of(line: str) -> list[str]:
    """A command's words after `ballast`, in whichever form it is written."""
    words = shlex.split(line, comments=True)
    if words[0] == "ballast":
        return words[1:]
    module, rest = words[2], words[3:]
    if module == "curator":
        return rest
    if rest and f"{module} {rest[0]}" in MODULES:
        return [*MODULES[f"{module} {rest[0]}"], *rest[1:]]
    return [*MODULES[module], *rest]


COMMANDS = [
    pytest.param(line, id=f"{page.name}:{number}") for page in PAGES for number, line in enumerate(command_lines(page))
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one_that_its_parser_takes(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "instruct").mkdir(parents=True)  # a model's folder has to be there
    parse(words_of(line), monkeypatch)


def test_a_command_with_an_option_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(COMMANDS) > 20
    with pytest.raises(SystemExit):
        parse(words_of("ballast mix task.jsonl --corpus chats --nosuch 1"), monkeypatch)


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_python_of_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block in one namespace, as a reader who follows the page has it."""
    found = blocks(ROOT / name)
    assert found
    store = write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with running(Settings(store=str(store))) as address:
        for number, text in enumerate(found):
            code = compile(text.replace(URL, address), f"{name}, block {number}", "exec")
            exec(code, names)
    assert (
        (tmp_path / "mix.parquet").stat().st_size
        if name == "docs/python.md"
        else read_data_file(tmp_path / "mix.jsonl")
    )
    if name == "docs/python.md":
        assert names["frame"].height == N_EXAMPLES
        assert names["best"]["gap_rel"].is_sorted(descending=True)
        assert names["by_source"]["n"].sum() == N_EXAMPLES - 1  # one row lacks a loss
        assert names["rows"].height == len(names["data"]) == names["made"].manifest.n_rows
