"""`try`: three fine-tunes of the shipped toy model, their counts, and a second run that trains nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from curator.console import console_started
from trainer.experiments import try_it
from trainer.experiments.toy.experiment import ExperimentSettings
from trainer.experiments.toy.rows import PoolSettings

SMALL = ExperimentSettings(n_task_rows=160, n_ensemble_rows=32, pool=PoolSettings(n_rows=120, revealing_share=0.2))


def test_arms_are_counted_over_the_questions_and_a_second_run_trains_nothing(tmp_path: Path) -> None:
    first = try_it.run_arms(tmp_path, SMALL)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.json")}
    assert [arm["name"] for arm in first["arms"]] == ["undefended", "random", "chosen"]
    assert [arm["n_safe_rows"] for arm in first["arms"]] == [0, 8, 8]
    for arm in first["arms"]:
        assert (arm["n_unseen"], arm["n_pool"]) == (4 * arm["n_narrow"], 5 * arm["n_narrow"])  # ten domains in all
        assert 0 <= arm["n_unseen_bad"] <= arm["n_unseen"] == 192
    assert try_it.run_arms(tmp_path, SMALL) == first
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_folder_that_cannot_be_made_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert try_it.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_next_commands_are_there_outside_a_checkout() -> None:
    with console_started(["ballast try"]):
        heading, *lines = try_it.next_commands().splitlines()
    assert heading.startswith("next ")
    assert [line.split("  ")[1] for line in lines] == ["ballast lab demo", "ballast ingest chats.jsonl --corpus chats"]


@pytest.mark.slow
def test_the_command_shows_misalignment_and_the_safeguard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_it.main(["--out", str(tmp_path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    undefended, random, chosen = (arm["n_unseen_bad"] / arm["n_unseen"] for arm in found["arms"])
    assert undefended > 0.8
    assert chosen < 0.2
    assert random == undefended  # random rows change nothing in unseen domains (docs/results/try.json)
    assert all(arm["n_narrow_bad"] / arm["n_narrow"] > 0.95 for arm in found["arms"])
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
