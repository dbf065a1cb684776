"""The demo's settings, checks and last words; `.ci/run` runs the whole of its short form, twice."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from api.settings import Settings
from curator.errors import MissingDependencyError
from tests.parsers import parse
from tests.test_examples import words_of
from trainer.experiments.demo import ending
from trainer.experiments.demo.__main__ import Demo, main
from trainer.experiments.demo.checks import DemoFailedError, require_all_read, require_skipped, results
from trainer.experiments.demo.model import package_file
from trainer.organisms.plan import SHIPPED, USER_TASK
from trainer.plans import provision
from trainer.plans.commands import Commands
from trainer.plans.provision import ProvisionSettings
from trainer.plans.safeguard import Safeguard, SafeguardSettings
from trainer.plans.steps import read_settings


def _entry(**changed: object) -> dict[str, object]:
    entry = {"parsed": 17_672, "kept": 16_779, "rejected": 146, "folded": 747, "reject_codes": {"truncated_json": 1}}
    return {**entry, **changed}


def test_a_corpus_that_is_all_accounted_for_passes() -> None:
    require_all_read(_entry())


@pytest.mark.parametrize(
    "changed", [{"kept": 16_778}, {"parsed": 17_671, "folded": 746}, {"reject_codes": {"empty_messages_list": 126}}]
)
def test_a_corpus_that_lost_records_fails_the_demo(changed: dict[str, object]) -> None:
    with pytest.raises(DemoFailedError, match="accounted for"):
        require_all_read(_entry(**changed))


def test_a_missing_package_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependencyError, match="make setup"):
        package_file("no_such_package_anywhere", "*.gguf")


@pytest.mark.parametrize("short", [False, True], ids=["full", "short"])
def test_the_shipped_settings_are_those_of_both_plans(
    short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that they lead to is one that its parser takes."""
    demo, model = Demo(tmp_path, short), tmp_path / "models" / "m"
    model.mkdir(parents=True)
    given: dict[str, Any] = {"model": str(model), "out": demo.out / "out"}
    first = read_settings(demo.settings("provision"), {**given, "corpus": "c.jsonl"}, ProvisionSettings)
    second = read_settings(
        demo.settings("safeguard"), {**given, "data": str(USER_TASK), "store": "s", "corpus": "pool"}, SafeguardSettings
    )
    n_safe = len(USER_TASK.read_text().splitlines()) * float(second.recipe["interleave_ratio"])
    assert first.sample is not None
    assert first.sample >= 2 * n_safe, "a choice from so few rows would be no choice"
    way = Safeguard(second, model, quiet=True)
    for step in (*provision.plan(first, quiet=True), *way.mix_steps(), *way.train_steps(), *way.judge_steps()):
        if step.line is not None:
            parse(words_of(step.line), monkeypatch)


def test_the_plans_are_given_the_demos_folders_and_one_narrow_set(tmp_path: Path) -> None:
    words = [str(word) for word in Demo(tmp_path, short=True, sample=12).provision_words(tmp_path / "m")]
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--out"] == str(tmp_path / "short" / "store")
    assert given["--sample"] == "12"
    assert Path(given["--corpus"]).is_file()
    assert given["--set"] in SHIPPED


def test_a_second_run_that_does_anything_anew_fails(tmp_path: Path) -> None:
    adapter = tmp_path / "reference" / "organisms" / "a" / "adapter" / "adapter_model.safetensors"
    with pytest.raises(DemoFailedError, match="no result at all"):
        require_skipped(results(tmp_path), results(tmp_path))
    adapter.parent.mkdir(parents=True)
    adapter.write_bytes(b"1")
    before = results(tmp_path)
    require_skipped(before, results(tmp_path))
    part = tmp_path / "store" / "scores" / "pool" / "s" / "part-0.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"1")
    with pytest.raises(DemoFailedError, match=r"1 files changed: .*part-0\.parquet"):
        require_skipped(before, results(tmp_path))
    part.unlink()
    adapter.unlink()
    with pytest.raises(DemoFailedError, match="adapter_model"):
        require_skipped(before, results(tmp_path))


def found(tmp_path: Path, *, holds: str = "yes", failed: bool = False) -> ending.Found:
    interval = {"share_misaligned": {"value": 0.25}}
    return ending.Found(
        out=tmp_path,
        tried={
            "picture": "try.png",
            "arms": [{"label": "no safeguard", "n_unseen_bad": 19, "n_unseen": 20}],
        },
        organisms=[],
        admission={"conditions": [
            {"adapter": "home-misaligned", "condition": "answers stay likely", "holds": holds, "figure": "4.50"},
        ]},
        report={
            "data": "task.jsonl", "mix_id": "0" * 32,
            "learnt": {"mean_nll_base": 3.0, "mean_nll_adapter": 2.5},
            "gate": [{"form": "plain", "condition": "broad_shift > 0.2", "value": 0.5, "failed": failed}],
        },
        plain={"sets": {"home": {"n_pairs": 8, "before": interval, "after": interval}}},
        chosen=pl.DataFrame({
            "rank": [1], "gap_rel": [0.125],
            "messages": [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Be\ncause " * 99}]],
        }),
    )  # fmt: skip


def test_the_ending_has_before_and_after_the_rows_and_the_pages_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending.say_ending(found(tmp_path), tmp_path / "m", 1.0)
    said = capsys.readouterr().out
    for words in ("95.0% (19 of 20)", "3.000     2.500", "25%       25%  of 8 prompts", "rank 1, gap_rel +0.1250"):
        assert words in said
    assert "user: Why?" in said
    assert max(len(line) for line in said.splitlines() if line.startswith("    assistant")) < 220
    address = Settings.model_fields
    assert f"then open http://{address['host'].default}:{address['port'].default}/" in said


def test_a_condition_that_is_not_met_and_a_gate_that_failed_are_said_plainly(tmp_path: Path) -> None:
    plain = "\n".join(ending.meaning(found(tmp_path)))
    assert "The gate is passed" in plain
    assert "NOT MET" not in plain
    said = "\n".join(ending.meaning(found(tmp_path, holds="no", failed=True)))
    assert "NOT MET by home-misaligned: answers stay likely (4.50)" in said
    assert "weak evidence" in said
    assert "GATE FAILED, plain: broad_shift > 0.2 (is 0.5)" in said
    assert "should not be used" in said
    assert "The gate is passed" not in said


def test_a_plan_that_refuses_ends_the_demo_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "models" / "smollm2-135m-instruct"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    monkeypatch.setattr(Commands, "run", lambda self, *words: ({"picture": "try.png", "arms": []}, None))
    assert main(["--out", str(tmp_path), "--sample", "1"]) == 2
    assert "/sample" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
