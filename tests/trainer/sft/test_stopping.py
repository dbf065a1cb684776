"""Ctrl-C in a real process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.sftruns import argv, document
from trainer import sft
from trainer.config.data import Loading
from trainer.evaluate import nll
from trainer.runs.checkpoints import complete_checkpoints


@pytest.fixture
def running(llama: Path, chats: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "trainer.sft", *argv(llama, chats, out, "--max-steps", "4000", "--epochs", "4000")]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
    try:
        yield process, out
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_ctrl_c_leaves_a_usable_adapter(running: tuple[subprocess.Popen[str], Path], llama: Path, chats: Path) -> None:
    process, out = running
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "adapter is usable" in error
    assert "Traceback" not in error
    assert not (out / "report.json").exists()
    marker = document(out / "adapter" / "ballast.json")
    assert marker["complete"] is False
    assert 3 <= marker["steps"] == metrics.read_bytes().count(b"\n")
    result = nll.measure(llama, chats, out / "adapter", nll.NllSettings(loading=Loading("float32")))
    assert result["shift"] != 0.0
    assert [checkpoint.step for checkpoint in complete_checkpoints(out)] == [marker["steps"]]
    assert sft.main(argv(llama, chats, out)) == 2  # other settings: its checkpoint is not thrown away unasked
    assert sft.main(argv(llama, chats, out, "--overwrite")) == 0
    assert document(out / "report.json")["steps"] == 4
