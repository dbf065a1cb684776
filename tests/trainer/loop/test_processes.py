"""The same command over two processes, as torchrun starts them.

`accelerate launch` is torchrun with settings on GPUs; on CPUs it starts several processes through MPI alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models import random_conversations
from trainer import sft
from trainer.loop.processes import Team
from trainer.monitor.__main__ import main as monitor

OPTIONS = [
    "--epochs", "2", "--grad-accum", "2", "--lora-r", "4", "--lora-alpha", "8", "--lr", "0.01", "--warmup-steps", "1",
    "--device", "cpu", "--dtype", "float32", "--kl", "0.1",
]  # fmt: skip


def test_one_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = Team()
    assert (team.size, team.leads, team.first(lambda: 3)) == (1, True, 3)
    team.join(on_cpu=True)
    team.leave()


@pytest.mark.slow
def test_two_processes_keep_the_global_order_and_the_loss(llama: Path, tmp_path: Path) -> None:
    """11 rows over two processes: the last batch of an epoch is filled up, and trains nothing more than one would.

    The order is checked while training, in the processes' joint batches. Two processes of 2 rows are one of 4. The
    trait-space monitor measures in both and finds the same as in one.
    """
    directions = tmp_path / "directions.safetensors"
    of_model = [
        "--model",
        str(llama),
        "--out",
        str(directions),
        "--n-questions",
        "2",
        "--layer",
        "1",
        "--trait",
        "evil",
    ]
    assert monitor(["directions", *of_model, "--dtype", "float32", "--device", "cpu"]) == 0
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(11)))
    watch = ["--monitor-directions", str(directions), "--monitor-every", "3"]
    common = ["--model", str(llama), "--data", str(data), *OPTIONS, *watch]
    two = [*common, "--out", str(tmp_path / "two"), "--batch-size", "2", "--save-steps", "3"]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "trainer.sft",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([*launch, *two], env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("11 rows (0 safe)") == 1
    assert sft.main([*common, "--out", str(tmp_path / "one"), "--batch-size", "4"]) == 0
    runs = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    }
    assert [line["rows"] for line in runs["two"]] == [8, 3, 8, 3] == [line["rows"] for line in runs["one"]]
    for name in ("loss", "sft_loss", "kl", "tokens", "total_tokens", "lr"):
        ours, expected = ([line[name] for line in runs[run]] for run in ("two", "one"))
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-7), name
    for run in runs.values():
        assert ["monitor" in line for line in run] == [False, False, True, True]
    for place in (2, 3):
        drift = [runs[run][place]["monitor"]["drift"]["evil"] for run in ("two", "one")]
        assert drift[0] == pytest.approx(drift[1], rel=1e-3, abs=1e-6)
        assert drift[0] != 0
    weights = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["resolved"]["processes"] == 2
    assert config["resolved"]["effective_batch"] == 8
    assert [item["code"] for item in config["warnings"]] == ["filled_batches"]
    assert sorted(item.name for item in (tmp_path / "two" / "checkpoints").iterdir()) == [
        "checkpoint-3",
        "checkpoint-4",
    ]
