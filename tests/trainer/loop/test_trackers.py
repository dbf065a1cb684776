"""A real tracker, offline: what TensorBoard's event file holds is what metrics.jsonl holds."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curator.errors import BadInputError
from tests.models import random_conversations
from trainer import config, sft
from trainer.config import parse_config
from trainer.runs.weights import check_trackers


def scalars(path: Path) -> Iterator[tuple[int, str, float]]:
    """Step, name and value of every scalar: each record is its length (8 bytes), a checksum (4), an event and a
    checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    content, place = path.read_bytes(), 0
    while place < len(content):
        (n_bytes,) = struct.unpack_from("<Q", content, place)
        event: Any = Event.FromString(content[place + 12 : place + 12 + n_bytes])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield event.step, value.tag, value.simple_value
        place += 12 + n_bytes + 4


def test_tensorboard_gets_the_loss_its_sft_part_and_each_term(llama: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "chats.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(6)))
    argv = ["--model", str(llama), "--data", str(data), "--out", str(out), "--lora-r", "2", "--lr", "0.01"]
    argv += ["--batch-size", "2", "--grad-accum", "1", "--warmup-steps", "1", "--device", "cpu", "--kl", "0.5"]
    assert sft.main([*argv, "--report-to", "tensorboard"]) == 0
    [events] = (out / "checkpoints" / "runs").rglob("events.out.tfevents.*")
    found = {(step, tag): value for step, tag, value in scalars(events)}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["kl"] > 0.0
    for line in lines:
        for name in ("sft_loss", "kl"):
            assert found[line["step"], f"train/{name}"] == pytest.approx(line[name], rel=1e-5), name
        # transformers rounds the loss that it hands out to some digits
        assert found[line["step"], "train/loss"] == pytest.approx(line["loss"], abs=1e-3)


def test_tensorboard_may_be_either_package(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"model": "m", "out": "o", "data": "d", "report_to": ["tensorboard"]}
    for there in ("tensorboard", "tensorboardX"):
        monkeypatch.setattr(config, "find_spec", lambda name, there=there: name == there or None)
        assert parse_config(document).report_to == ("tensorboard",)
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match="the tracker tensorboard is not installed: pip install tensorboard"):
        parse_config(document)


def test_a_tracker_that_cannot_be_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swanlab.py").write_text("raise RuntimeError('half an installation')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInputError, match="swanlab cannot be loaded: half an installation; install it anew"):
        check_trackers(["swanlab"])
    check_trackers(["tensorboard"])
