"""Every line of the GPU check runs on a CPU, so that the minutes on a GPU are not spent on finding slips."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_rehearsal_measures_every_part(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.md"
    code = main(["--rehearse", "--smollm", str(llama), "--out", str(out), "--work", str(tmp_path), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0, document["left_out"]
    assert [item["model"] for item in document["scoring"]] == [llama.name, "random 64x2x800"]
    for item in document["scoring"]:
        assert 0 <= item["exact"]["max_abs"] < 0.2
        assert item["tokens_per_s"] > 0
    runs = {item["run"]: item for item in document["training"]}
    assert list(runs) == [
        "none", "kl", "ldifs", "treft", "steering", "gating", "kl and ldifs", "none, no checkpointing"
    ]  # fmt: skip
    for name, item in runs.items():
        assert 0.7 < item["ratio"] < 2, name
    assert document["left_out"] == document["failed"] == []
    page = out.read_text()
    assert page.startswith("# Rehearsal of the GPU check")
    assert "| kl and ldifs | " in page
    assert str(tmp_path) not in page
    assert [item.name for item in tmp_path.iterdir()] == ["gpu.md"], "nothing is left behind"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the check would run")
def test_without_a_gpu_it_says_what_can_be_done() -> None:
    done = subprocess.run([ROOT / "tests/gpu/run"], capture_output=True, text=True, check=False, cwd="/", env={
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)
    })  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no GPU is visible to torch here: --rehearse runs the same on a CPU")
