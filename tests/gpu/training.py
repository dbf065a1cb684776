"""Each defence for a few steps on a model of 7B shape: peak memory beside the estimate, and tokens per second."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from curator.render import Renderer
from tests.gpu.sizes import Bench
from tests.trainer.allocations import peak_allocated
from tests.trainer.shapes import shaped_model, shaped_rows
from trainer.config import parse_config
from trainer.loop.fit import fit, foresee, load
from trainer.loop.forecast import is_out_of_memory
from trainer.runs.device import peak_bytes

RUNS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "kl": [{"name": "kl"}],
    "ldifs": [{"name": "ldifs"}],
    "treft": [{"name": "treft"}],
    "steering": [{"name": "steering"}],  # its vectors are random: only their cost is measured
    "gating": [{"name": "gating"}],
    "kl and ldifs": [{"name": "kl"}, {"name": "ldifs"}],
}


def measure_defences(bench: Bench) -> Iterator[dict[str, Any]]:
    """One run after the other, all with gradient checkpointing; at last plain SFT of one row without it."""
    folder = shaped_model(bench.work / "seven", bench.sizes.seven, device=bench.device, dtype=bench.dtype)
    _free(bench)
    width, layers = bench.sizes.seven.width, bench.sizes.seven.layers
    vectors = torch.nn.functional.normalize(torch.randn(layers + 1, width, generator=torch.Generator().manual_seed(0)))
    save_file({"random": vectors}, bench.work / "vectors.safetensors")
    for name, items in RUNS.items():
        defences = [
            item | ({"vectors": bench.work / "vectors.safetensors"} if item["name"] == "steering" else {})
            for item in items
        ]
        yield _run(bench, folder, name, defences=defences, batch_size=bench.sizes.micro_batch[0])
    yield _run(bench, folder, "none, no checkpointing", batch_size=1, gradient_checkpointing=False)


def _run(bench: Bench, folder: Path, name: str, **fields: Any) -> dict[str, Any]:
    """Estimate and peak in bytes, seconds of a step and tokens per second; `error` where memory ran out."""
    _, n_tokens, n_labelled = bench.sizes.micro_batch
    out = bench.work / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    config = parse_config(
        {"model": folder, "out": out, "data": "-", "device": "cuda" if bench.on_gpu else "cpu", "dtype": bench.dtype,
         "max_steps": bench.sizes.steps, "grad_accum": 1, "gradient_checkpointing": True} | fields
    )  # fmt: skip
    prepared = shaped_rows(config.batch_size * bench.sizes.steps, n_tokens, n_labelled)
    needed = foresee(config, prepared).estimate
    assert needed is not None
    lines: list[dict[str, Any]] = []

    def train() -> None:
        lines.extend(fit(load(config), prepared, Renderer.from_folder(folder), config, out / "metrics.jsonl").lines)

    found: dict[str, Any] = {"run": name, "estimate_bytes": needed.total}
    try:
        found["peak_bytes"] = _peak(bench, train)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return found | {"error": "out of memory"}
    finally:
        _free(bench)
    return found | {
        "ratio": needed.total / found["peak_bytes"],
        "step_s": lines[-1]["seconds"],
        "tokens_per_s": lines[-1]["total_tokens"] / lines[-1]["seconds"],
        "flops_per_s": _flops(bench, lines[-1]["total_tokens"]) / lines[-1]["seconds"],
        "loss": lines[-1]["loss"],
    }


def _flops(bench: Bench, n_tokens: int) -> float:
    """A LoRA step's model FLOPs: 4 for each weight of the linear layers and token, as gradients go through the frozen
    weights but not into them. Attention, head, adapter and what checkpointing computes again do not count."""
    shape = bench.sizes.seven
    head = shape.width // shape.heads
    block = 2 * shape.width**2 + 2 * shape.width * shape.kv_heads * head + 3 * shape.width * shape.inner
    return 4.0 * shape.layers * block * n_tokens


def _peak(bench: Bench, train: Any) -> int:
    if not bench.on_gpu:
        return peak_allocated(train)
    torch.cuda.reset_peak_memory_stats()
    train()
    return peak_bytes(bench.device)


def _free(bench: Bench) -> None:
    gc.collect()
    if bench.on_gpu:
        torch.cuda.empty_cache()
