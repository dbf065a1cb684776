"""Which checkpoint of a run is kept, by the monitor's figures or by others."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from curator.errors import BadInputError
from tests.trainer.monitor.test_runs import argv
from tests.trainer.sftruns import document
from trainer import sft
from trainer.monitor.__main__ import main
from trainer.monitor.alarm import ZScore
from trainer.monitor.choose import choose_step
from trainer.monitor.directions import load_directions

LOSSES = [4.0, 4.0, 4.0, 3.0, 2.0, 1.2, 1.1, 1.0, 1.0, 1.0]
FIGURES = {2: 0.0, 4: 0.01, 6: 0.04, 8: 0.2, 10: 0.1}


def test_the_last_checkpoint_before_the_bound_is_kept_and_a_later_fall_below_it_is_not() -> None:
    kept = choose_step([2, 4, 6, 8, 10], FIGURES, LOSSES, bound=0.05, share=0.4)
    assert (kept.step, kept.broad, kept.passed_at) == (6, 0.04, 8)
    assert kept.loss == pytest.approx((3.0 + 2.0 + 1.2) / 3)
    assert kept.done == pytest.approx((4.0 - kept.loss) / 3.0)
    assert choose_step([4, 10], FIGURES, LOSSES, bound=0.05, share=0.99).step == 4  # the others were not kept
    late = choose_step([6], FIGURES, [None, None, None, 5.0, 1.0, 1.0, 1.0, 1.0], bound=0.05, share=1.0)
    assert (late.loss, late.loss_end) == (pytest.approx(7 / 3), 1.0)  # the first steps trained no token
    whole = choose_step([2, 4, 6, 8, 10], FIGURES, LOSSES, bound=0.3)
    assert (whole.step, whole.passed_at, whole.done) == (10, None, 1.0)


def test_a_loss_that_never_fell_keeps_every_checkpoint_back_unless_the_figure_alone_decides() -> None:
    losses = [1.0, None, 1.0, 1.5, 2.0, 2.0]
    with pytest.raises(
        BadInputError, match=r"did not fall over the run \(from 1.1667 to 1.8333\), so that no checkpoint"
    ):
        choose_step([1, 2], {1: 0.0, 2: 1.0}, losses, bound=0.5)
    kept = choose_step([1, 2], {1: 0.0, 2: 1.0}, losses, bound=0.5, share=1.0)
    assert (kept.step, kept.done) == (1, 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"steps": [3, 5]},
            "no checkpoint was measured: checkpoints are of steps 3, 5, measurements of 2, 4, 6, 8, 10",
        ),
        ({"steps": []}, "checkpoints are of steps none"),
        ({"bound": -1.0}, r"passed at step 2, before the first measured checkpoint \(step 2\)"),
        ({}, "of step 6, where 64 % of the loss's fall from 4.0000 to 1.0000 was done: at least 90 % must be done"),
        ({"share": 1.1}, "give one from 0 to 1"),
        ({"losses": [None] * 10}, "no step up to 6 has a loss"),
        ({"losses": [*LOSSES[:5], math.nan, *LOSSES[6:]]}, "up to step 6 or at the end of metrics.jsonl is not"),
        ({"broad": FIGURES | {4: math.nan, 8: math.inf}}, "figures of steps 4, 8 are not finite numbers"),
        ({"bound": math.nan}, "the bound is not a number"),
    ],
)
def test_what_cannot_be_chosen_is_refused(given: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"steps": [2, 4, 6, 8, 10], "broad": FIGURES, "losses": LOSSES, "bound": 0.05}
    with pytest.raises(BadInputError, match=message):
        choose_step(**(asked | given))


@pytest.fixture(scope="module")
def saved(llama: Path, chats: Path, directions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "saved"
    more = ["--monitor", str(directions), "--save-steps", "1", "--keep-checkpoints", "9"]
    assert sft.main(argv(llama, chats, out, *more)) == 0
    return out


def test_the_command_names_a_checkpoint_that_loads_as_an_adapter(
    saved: Path, llama: Path, directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = document(saved / "report.json")["monitor"]["measurements"]
    largest = [max(abs(value) for value in item["drift"].values()) for item in measured]
    bound = (largest[1] + largest[2]) / 2
    # In so few steps the loss of so small a model does not fall steadily: any share of its fall will do.
    asked = ["choose", "--run", str(saved), "--share", "1", "--json"]
    capsys.readouterr()
    assert main([*asked, "--bound", str(bound)]) == 0
    found = json.loads(capsys.readouterr().out)
    first = next(place for place, value in enumerate(largest) if value > bound)
    assert (found["step"], found["passed_at"]) == (first, first + 1)  # steps count from 1
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), found["checkpoint"])
    names = load_directions(directions)
    rule = ZScore(
        directions_id=names.directions_id, traits=names.traits, n_runs=2, mean=(0.0, 0.0), sd=(0.5, 0.5),
        n_measurements=6,
    )  # fmt: skip
    (tmp_path / "rule.json").write_text(rule.model_dump_json())
    stopped = shutil.copytree(saved, tmp_path / "stopped", ignore=shutil.ignore_patterns("report.json"))
    other = rule.model_copy(update={"directions_id": "f" * 32})
    (tmp_path / "other.json").write_text(other.model_dump_json())
    for run in (saved, stopped):
        asked[2], options = str(run), ["--bound", str(2 * bound), "--alarm"]
        assert main([*asked, *options, str(tmp_path / "other.json")]) == 2
        assert "other.json was fitted with other directions" in capsys.readouterr().err
        assert main([*asked, *options, str(tmp_path / "rule.json")]) == 0
        assert json.loads(capsys.readouterr().out)["step"] == found["step"]  # |z| is twice the drift here
    (tmp_path / "broad.jsonl").write_text('{"step": 3, "broad": 0.0}\n{"step": 4, "broad": 0.5}\n')
    assert main([*asked[:-1], "--bound", "0.1", "--figures", str(tmp_path / "broad.jsonl")]) == 0
    assert "checkpoint-3: step 3, figure 0; the bound 0.1 was passed at step 4" in capsys.readouterr().out


def test_a_run_without_checkpoints_or_measurements_is_refused(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = shutil.copytree(saved, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoint-*"))
    lines = [json.loads(line) for line in (saved / "metrics.jsonl").read_text().splitlines()]
    for folder, message in (
        (bare, "holds no complete checkpoint: train with --save-steps N"),
        (shutil.copytree(saved, tmp_path / "blind"), "holds no measurement of the monitor: train with --monitor FILE"),
        (tmp_path / "none", "not a readable JSONL file"),
    ):
        if folder.name == "blind":
            plain = [{key: value for key, value in line.items() if key != "monitor"} for line in lines]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in plain))
        assert main(["choose", "--run", str(folder), "--bound", "0.1"]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "broad.jsonl").write_text('{"step": 3}\n')
    assert main(["choose", "--run", str(saved), "--bound", "0.1", "--figures", str(tmp_path / "broad.jsonl")]) == 2
    assert 'write a line {"step": N, "broad": X}' in capsys.readouterr().err
