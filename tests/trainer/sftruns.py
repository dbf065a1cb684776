"""Small runs of `python -m trainer.sft` that several test modules make."""

import json
from pathlib import Path
from typing import Any

SMALL = ["--lora-r", "4", "--lora-alpha", "8", "--lr", "0.01", "--warmup-steps", "1", "--device", "cpu"]


def argv(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    options = ["--max-steps", "4", "--epochs", "4", "--batch-size", "4", "--grad-accum", "2", "--kl", "0.1"]
    return ["--model", str(model), "--data", str(data), "--out", str(out), *SMALL, *options, *more]


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
