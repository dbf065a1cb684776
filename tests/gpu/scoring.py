"""The torch engine: its losses beside plain transformers', its tokens per second, its share of the machine's rate."""

import time
from pathlib import Path
from statistics import median
from typing import Any

from curator.render import Renderer
from curator.scoring.check import compare, summary
from curator.scoring.engines.torch_engine import TorchEngine
from curator.scoring.engines.torch_model import torch
from curator.scoring.engines.torch_reference import TorchReference
from tests.bench.scoring.flops import gemm_flops_per_s, model_shape, needed_flops
from tests.bench.scoring.rows import bench_rows
from tests.bench.training.data import write_chats
from tests.gpu.sizes import Bench

ROUNDS = 3


def measure_scoring(bench: Bench, name: str, model: Path) -> dict[str, Any]:
    """Differences of a row's mean loss (nats per token) and speed of one model.

    Exact are the engine and transformers row by row, both in the run's dtype; for scale, how far transformers in that
    dtype is from itself in float32.
    """
    sizes = bench.sizes
    chats = write_chats(bench.work / f"{name}.jsonl", 2 * sizes.timed_rows, sizes.words)
    found = bench_rows(chats, Renderer.from_folder(model), sizes.timed_rows, sizes.max_length)
    rows = [row.whole for row in found]
    few = {f"{index:032x}": row for index, row in enumerate(rows[: sizes.exact_rows])}

    engine = TorchEngine(model, device="cuda" if bench.on_gpu else "cpu", dtype=bench.dtype)
    stored = dict(zip(few, engine.score(list(few.values())), strict=True))
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        engine.score(rows)
        if bench.on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    shape = model_shape(engine.hookable_model())
    engine.close()

    plain = TorchReference(model, None, device=bench.device, dtype=bench.dtype)
    exact = summary(compare(plain, few, stored, bench.dtype))
    in_dtype = dict(zip(few, plain.score(list(few.values())), strict=True))
    plain.close()
    wide = TorchReference(model, None, device=bench.device, dtype="float32")
    rounding = summary(compare(wide, few, in_dtype, bench.dtype))
    wide.close()

    rate = gemm_flops_per_s(bench.device, bench.dtype, size=sizes.gemm)
    n_tokens = sum(row.n_tokens for row in rows)
    return {
        "model": name,
        "shape": shape.name,
        "n_rows": len(rows),
        "n_exact": len(few),
        "n_tokens": n_tokens,
        "exact": exact,
        "rounding": rounding,
        "tokens_per_s": n_tokens / median(seconds),
        "flops_per_s": needed_flops(shape, rows) / median(seconds),
        "gemm_flops_per_s": rate,
        "share_of_gemm": needed_flops(shape, rows) / median(seconds) / rate,
    }
