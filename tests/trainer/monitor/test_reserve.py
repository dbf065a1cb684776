"""Safe rows held in reserve: which they are, when they are trained, and that the order stays the mix's own."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from curator.errors import BadInputError
from curator.mix.build import build_mix
from tests.mix_stores import recipe, scored_store, task_set
from tests.trainer.sftruns import SMALL, document
from trainer import sft
from trainer.config import parse_config
from trainer.config.monitor import ReserveSettings
from trainer.data.order import OrderCheck
from trainer.loop.reserve import Reserve, reserve_rows


@pytest.fixture(scope="module")
def mix(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mix")
    store = scored_store(folder / "store", llama)
    mix_id = build_mix(store, task_set(folder / "work", 20), recipe(interleave_ratio=0.2)).mix_id
    options = ["--max-steps", "3", "--batch-size", "8", "--grad-accum", "1", "--dtype", "float32"]
    return ["--model", str(llama), "--mix-id", mix_id, "--store", str(folder / "store"), *SMALL, *options]


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_reserve_is_spread_over_the_safe_rows() -> None:
    safe = [place % 3 == 0 for place in range(30)]  # ten of them
    assert reserve_rows(safe, 1.0) == [place for place in range(30) if safe[place]]
    assert reserve_rows(safe, 0.5) == [3, 9, 15, 21, 27]
    assert reserve_rows(safe, 0.1) == [27]
    assert reserve_rows(safe, 0.05) == []


def test_rows_of_the_reserve_carry_no_loss_while_it_is_off_and_others_are_as_they_were() -> None:
    reserve = Reserve(ReserveSettings(share=1.0, bound=0.5), [False, True, False, True])
    batch = {
        "row": torch.tensor([0, 1, 2, 3]),
        "labels": torch.ones(4, 5, dtype=torch.int64),
        "input_ids": torch.ones(4, 5),
    }
    (held,) = reserve.held_back([batch])
    assert held["labels"].sum(1).tolist() == [5, -500, 5, -500]
    assert held["input_ids"] is batch["input_ids"]
    assert int(batch["labels"].sum()) == 20
    assert not reserve.judge(0.5)
    assert reserve.judge(0.51)
    (given,) = reserve.held_back([batch])
    assert given is batch


def test_a_run_trains_its_reserve_from_the_measurement_that_passes_the_bound(
    mix: list[str], directions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    check = OrderCheck.see

    def see(order: OrderCheck, rows: Sequence[int]) -> None:
        trained.extend(rows)
        check(order, rows)

    monkeypatch.setattr(OrderCheck, "see", see)
    watch = ["--monitor", str(directions), "--monitor-every", "1"]
    runs = {
        "plain": [],
        "led": ["--reserve", "1", "--reserve-bound", "0"],
        "never": ["--reserve", "1", "--reserve-bound", "99"],
    }
    found = {}
    for name, more in runs.items():
        assert sft.main([*mix, *watch, *more, "--out", str(tmp_path / name)]) == 0
        found[name] = lines_of(tmp_path / name)
        assert trained == list(range(24))  # the order of the mix, whatever is held back
        trained.clear()
    plain, led, never = found.values()
    assert [line["rows"] for line in led] == [line["rows"] for line in never] == [line["rows"] for line in plain]
    assert [line["total_tokens"] for line in led] == [line["total_tokens"] for line in plain]
    assert all(one["tokens"] < other["tokens"] for one, other in zip(never, plain, strict=True))
    on = [line["monitor"]["reserve"] for line in led]
    assert any(on)  # the first step has rate 0 and no drift
    for before, line, off, whole in zip([False, *on], led, never, plain, strict=False):
        assert line["tokens"] == (whole if before else off)["tokens"]
    report = document(tmp_path / "led" / "report.json")
    steps = [step for step, flag in enumerate(on, 1) if flag]
    assert report["reserve"] == {"share": 1.0, "bound": 0.0, "on_after_steps": steps}
    assert document(tmp_path / "never" / "report.json")["reserve"]["on_after_steps"] == []
    said = "In reserve: 1 of the safe rows, trained only while drift was above"
    pages = {name: (tmp_path / name / "report.md").read_text() for name in runs}
    assert f"{said} 99 (after 0 measurements)." in pages["never"]
    assert f"{said} 0 (after {len(steps)} measurements)." in pages["led"]
    assert "In reserve" not in pages["plain"]
    assert f"{said} 99.\n" in (tmp_path / "never" / "adapter" / "README.md").read_text()
    assert not any(line["monitor"]["reserve"] for line in never)


def test_a_step_of_rows_in_reserve_alone_has_no_loss_and_later_steps_go_on(
    mix: list[str], directions: Path, tmp_path: Path
) -> None:
    argv = [*mix, "--monitor", str(directions), "--monitor-every", "1", "--reserve", "1", "--reserve-bound", "99"]
    assert sft.main([*argv, "--batch-size", "1", "--max-steps", "24", "--out", str(tmp_path / "run")]) == 0
    found = lines_of(tmp_path / "run")
    held = [line for line in found if not line["tokens"]]
    assert [len(found), len(held)] == [24, 4]
    assert {line["sft_loss"] for line in held} == {None}
    assert all(line["grad_norm"] == 0.0 for line in held)
    assert all(line["sft_loss"] > 0 for line in found if line["tokens"])


def test_a_run_that_goes_on_from_a_checkpoint_knows_whether_its_reserve_was_on(
    mix: list[str], directions: Path, tmp_path: Path
) -> None:
    argv = [*mix, "--monitor", str(directions), "--monitor-every", "2", "--reserve", "1", "--reserve-bound", "0"]
    argv += ["--save-steps", "2", "--keep-checkpoints", "9", "--out", str(tmp_path / "run")]
    assert sft.main(argv) == 0
    whole, report = lines_of(tmp_path / "run"), document(tmp_path / "run" / "report.json")
    assert whole[1]["monitor"]["reserve"]
    (tmp_path / "run" / "report.json").unlink()  # as if it had been killed after its checkpoint
    shutil.rmtree(tmp_path / "run" / "adapter")
    assert sft.main([*argv, "--resume", "2"]) == 0
    assert [line["tokens"] for line in lines_of(tmp_path / "run")] == [line["tokens"] for line in whole]
    assert document(tmp_path / "run" / "report.json")["adapter_sha256"] == report["adapter_sha256"]


def test_what_leads_a_reserve_is_part_of_the_run_and_what_lacks_is_refused(directions: Path, tmp_path: Path) -> None:
    given = {"model": "m", "out": "o", "mix_id": "a" * 32, "store": "s", "reserve": {"share": 0.5, "bound": 0.1}}
    copy = shutil.copyfile(directions, tmp_path / "copy.safetensors")
    one, two, other = (
        parse_config(given | {"monitor": {"directions": path, "every": every}}).without_places()
        for path, every in ((directions, 5), (copy, 5), (directions, 6))
    )
    assert one == two != other
    for lacking in ({}, {"monitor": {"directions": directions}}):
        with pytest.raises(BadInputError, match="give --mix-id, --monitor and --monitor-every N"):
            parse_config(given | lacking)


def test_a_reserve_without_a_row_is_refused(
    mix: list[str], directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*mix, "--monitor", str(directions), "--monitor-every", "1", "--reserve", "0.01", "--reserve-bound", "1"]
    assert sft.main([*argv, "--out", str(tmp_path / "run")]) == 2
    assert "reserve: 0.01 of the 4 safe rows of this mix is no row" in capsys.readouterr().err
    assert sft.main([*mix, *argv[len(mix) : -4], "--reserve", "0.5", "--out", str(tmp_path / "run")]) == 2
    assert "/reserve/bound: " in capsys.readouterr().err
    assert sft.main([*mix, "--reserve-bound", "1", "--out", str(tmp_path / "run")]) == 2
    assert "--reserve-bound goes with --reserve, which was not given" in capsys.readouterr().err
