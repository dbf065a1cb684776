import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curator.errors import BadInputError, IntegrityError, MissingError
from tests.models import random_conversations
from tests.trainer.tiny import (
    adapted_model,
    lora_parameters,
    rows,
    trainer_of,
)
from trainer import sft
from trainer.config.options import Resume, parse_arguments
from trainer.loop.summary import stopped_line
from trainer.loop.trainer import BallastTrainer
from trainer.runs.checkpoints import complete_checkpoints
from trainer.runs.folder import CONFIG, RunFolder, write_json

# 11 rows in micro-batches of 2, three to a step: two steps an epoch, the second one smaller; 3 epochs.
OPTIONS = [
    "--epochs",
    "3",
    "--batch-size",
    "2",
    "--grad-accum",
    "3",
    "--lora-r",
    "4",
    "--lora-alpha",
    "8",
    "--lr",
    "0.01",
]
OPTIONS += ["--lora-dropout", "0.1", "--warmup-steps", "1", "--device", "cpu", "--dtype", "float32", "--cache", "none"]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(11)))
    return path


def argv(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--data", str(data), "--out", str(out), "--kl", "0.1", *OPTIONS, *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(llama: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert sft.main(argv(llama, chats, out, "--save-steps", "1", "--keep-checkpoints", "9")) == 0
    return out


@pytest.mark.parametrize("step", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 5])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    llama: Path, chats: Path, uninterrupted: Path, tmp_path: Path, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropout is on, so the random streams count as well; steps 1 and 5 lie inside an epoch, 2 at its end."""
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    (out / "report.json").unlink()
    shutil.rmtree(out / "adapter")
    assert sft.main(argv(llama, chats, out, "--resume", str(step))) == 0
    assert f"going on from the checkpoint of step {step}" in capsys.readouterr().out
    assert same(weights(out), weights(uninterrupted))
    assert losses(out) == losses(uninterrupted)
    assert [checkpoint.step for checkpoint in complete_checkpoints(out)] == [*range(1, step + 1)]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(
    llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, killed, whole = ["--max-steps", "40", "--epochs", "40"], tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "trainer.sft", *argv(llama, chats, killed, "--save-steps", "2", *long)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not complete_checkpoints(killed):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.15)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "report.json").exists()
    partial = killed / "checkpoints" / "checkpoint-39"  # as a kill in the middle of a write would leave it
    partial.mkdir()
    (partial / "adapter_config.json").write_text("{}")
    assert sft.main(argv(llama, chats, killed, "--seed", "1", *long)) == 2
    assert "holds checkpoints of a run with other seed" in capsys.readouterr().err
    assert sft.main(argv(llama, chats, killed, "--save-steps", "2", *long)) == 0  # goes on without being asked
    assert "going on from the checkpoint of step" in capsys.readouterr().out
    assert sft.main(argv(llama, chats, whole, *long)) == 0
    assert same(weights(killed), weights(whole))
    assert losses(killed) == losses(whole)
    assert not partial.exists()
    assert len(complete_checkpoints(killed)) == 2


def test_a_checkpoint_holds_what_resuming_needs_and_nothing_of_the_base(uninterrupted: Path) -> None:
    folder = complete_checkpoints(uninterrupted)[0].path
    names = {item.name for item in folder.iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    assert not any("lora" not in name for name in load_file(folder / "adapter_model.safetensors"))


def test_order_is_checked_after_resuming(llama: Path, tmp_path: Path) -> None:
    """The rows after the checkpoint swapped: training stops at once."""
    prepared, options = (
        rows(8),
        {"output_dir": str(tmp_path / "checkpoints"), "save_strategy": "steps", "save_steps": 1},
    )
    trainer_of(adapted_model(llama, dtype=torch.float32), prepared, llama, **options, max_steps=1).train()
    again = trainer_of(adapted_model(llama, dtype=torch.float32), prepared, llama, **options, max_steps=2)
    again.order.start_at(4)
    again.train_dataset = again.train_dataset.select([0, 1, 2, 3, 5, 4, 6, 7])
    with pytest.raises(IntegrityError, match=r"left the order of its rows after 4 rows: expected positions \[4, 5"):
        again.train(resume_from_checkpoint=str(complete_checkpoints(tmp_path)[0].path))
    assert lora_parameters(again.model)


def test_resuming_without_a_checkpoint_is_refused(
    llama: Path, chats: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sft.main(argv(llama, chats, tmp_path / "run", "--resume")) == 2
    assert "no complete checkpoint to resume from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sft.main(argv(llama, chats, tmp_path / "run", "--resume", "last"))
    assert "--resume takes the step of a checkpoint, not 'last'" in capsys.readouterr().err
    folder = RunFolder(tmp_path / "claimed")
    for step in (3, 5):
        marker = folder.path / "checkpoints" / f"checkpoint-{step}"
        marker.mkdir(parents=True)
        write_json(marker / "complete.json", {"step": step})
    found: dict[str, Any] = {"config": {"seed": 0}}
    write_json(folder.path / CONFIG, {"fingerprint": found})
    with pytest.raises(MissingError, match="no checkpoint of step 4; there are 3, 5"):
        folder.claim(found, resume=Resume(4))
    with pytest.raises(BadInputError, match="with other seed"):
        folder.claim({"config": {"seed": 1}})
    claim = folder.claim(found)
    assert claim.checkpoint is not None
    assert claim.checkpoint.step == 5
    assert folder.claim(found, overwrite=True).checkpoint is None
    assert not complete_checkpoints(folder.path)


@pytest.mark.slow
def test_gates_are_resumed_as_well(llama: Path, chats: Path, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert sft.main(argv(llama, chats, whole, "--gating", "--save-steps", "3")) == 0
    shutil.copytree(whole, again)
    (again / "report.json").unlink()
    shutil.rmtree(again / "adapter")
    assert sft.main(argv(llama, chats, again, "--gating", "--resume", "3")) == 0
    gates = [load_file(run / "adapter" / "gates.safetensors") for run in (whole, again)]
    assert same(*gates)
    assert any(bool(tensor.any()) for tensor in gates[0].values())


def press_twice_in_step(monkeypatch: pytest.MonkeyPatch, n_micro: int) -> None:
    """Ctrl-C and Ctrl-C again, as real signals, in the micro-batch after `n_micro` of them."""
    whole, n_seen = BallastTrainer.training_step, [0]

    def pressed(self: BallastTrainer, *args: Any, **options: Any) -> torch.Tensor:
        if n_seen[0] == n_micro:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        n_seen[0] += 1
        return whole(self, *args, **options)

    monkeypatch.setattr(BallastTrainer, "training_step", pressed)


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ([], "but there is no checkpoint: the same command starts over and removes adapter/; copy it to keep it"),
        (
            ["--save-steps", "2"],
            "but there is no checkpoint of step 3: the same command goes on from step 2 and removes adapter/; copy it",
        ),
    ],
)
def test_a_second_ctrl_c_says_exactly_what_is_kept(
    llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reported: str
) -> None:
    """A step has three micro-batches: the eleventh lies in the fourth of six steps."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        press_twice_in_step(patch, n_micro=10)
        assert sft.main(argv(llama, chats, out, *options)) == 130
    error = capsys.readouterr().err
    assert "Ctrl-C again stops at once" in error
    assert f"stopped after 3 of 6 steps; {out / 'adapter'} is usable, {reported}" in error
    assert weights(out)
    with pytest.MonkeyPatch.context() as patch:  # the same command, up to its first step
        press_twice_in_step(patch, n_micro=0)
        assert sft.main(argv(llama, chats, out, *options)) == 130
    said = capsys.readouterr()
    assert ("going on from the checkpoint of step 2" in said.out) == bool(options)
    assert ("goes on from there" in said.err) == bool(options)
    assert (out / "adapter").exists() == bool(options)  # started over: nothing is learnt yet, and nothing is left


@pytest.mark.parametrize(
    ("more", "checkpoint", "reported"),
    [
        ([], 3, "is usable, and the same command goes on from there"),
        (["--overwrite"], 3, "and the same command without --overwrite goes on from there"),
        (["--resume", "1"], 2, "the same command with --resume in the place of --resume 1 goes on from step 2"),
        (["--overwrite"], None, "there is no checkpoint: the same command starts over"),
    ],
)
def test_what_a_stop_says_follows_the_command_and_the_checkpoint(
    more: list[str], checkpoint: int | None, reported: str
) -> None:
    invocation = parse_arguments(argv(Path("m"), Path("d.jsonl"), Path("o"), *more))
    assert reported in stopped_line(invocation, Path("o/adapter"), 3, 6, checkpoint)
