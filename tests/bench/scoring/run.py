"""One benchmark run from rows to figures."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from curator.console import Progress
from curator.render import Renderer
from curator.scoring import RowLoss
from curator.scoring.engines.torch_model import set_threads
from curator.scoring.identity import check_model_dir
from tests.bench.scoring.contenders import Contenders
from tests.bench.scoring.flops import gemm_flops_per_s, model_shape, needed_flops
from tests.bench.scoring.memory import GROWTH, peak_bytes
from tests.bench.scoring.request import BenchRequest
from tests.bench.scoring.rows import BenchRow, bench_rows, n_response_tokens
from tests.bench.scoring.shapes import make_model
from tests.bench.scoring.timing import Seconds, interleaved, paired_ratio
from trainer.runs.machine import describe

Document = dict[str, Any]


def run_bench(request: BenchRequest) -> Document:
    """Figures of one run as plain values: seconds by round, medians, ratios, agreement, machine.

    Tokens per second count the rows' tokens. Raises BadInputError for rows or a model that cannot be used.
    """
    if request.shape is not None:  # the tokenizer alone is taken of the folder
        with TemporaryDirectory(prefix="ballast-bench-") as folder:
            model = make_model(request.shape, request.model_dir, Path(folder) / f"llama-{request.shape.name}")
            return run_bench(replace(request, model_dir=model, shape=None))
    check_model_dir(request.model_dir)
    renderer = Renderer.from_folder(request.model_dir)
    rows = bench_rows(request.corpus_file, renderer, request.rows, request.max_length)
    load_before = os.getloadavg()[0]
    set_threads(request.threads)
    with TemporaryDirectory(prefix="ballast-bench-") as scratch:
        parts = Contenders(request, renderer, rows, Path(scratch))
        batch_seconds = parts.warm_up()
        gemm: list[float] = []
        clock = time.process_time if request.clock == "cpu" else time.perf_counter
        parts.clock = clock
        tasks = {**parts.tasks(), "gemm": lambda: gemm.append(gemm_flops_per_s(parts.device, parts.dtype, clock))}
        with Progress(len(tasks) * request.repeats, "passes", "benchmark") as bar:
            seconds = interleaved(tasks, request.repeats, clock, on_done=lambda name: bar.advance(1, last=name))
    seconds.pop("gemm")
    machine = {**describe(parts.device, parts.dtype), "load_average_before": round(load_before, 2)}
    document: Document = {"machine": machine, **_facts(request, parts, rows)}
    document["seconds"] = {name: {"median": median(found), "rounds": found} for name, found in seconds.items()}
    document["tokens_per_s"] = _rates(seconds, rows)
    document["gemm_gflops_per_s"] = [round(rate / 1e9, 1) for rate in gemm]
    document["ratios"] = _ratios(seconds, parts, gemm)
    document["agreement"] = _agreement(parts.losses)
    document["lm_eval"] = {
        "batch_seconds": {str(size): found for size, found in batch_seconds.items()},
        "missing": parts.lm_eval_missing,
    } | ({"batch_size": parts.lm_eval.batch_size} if parts.lm_eval else {})
    document["vllm"] = {"missing": parts.vllm_missing}
    document["peak_memory"] = _memory(request, parts.device, parts.dtype)
    return document


def _facts(request: BenchRequest, parts: Contenders, rows: Sequence[BenchRow]) -> Document:
    shape = model_shape(parts.model)
    return {
        "model": {"name": request.model_dir.resolve().name, "shape": shape.name, "n_linear": shape.n_linear},
        "rows": {
            "file": request.corpus_file.name,
            "n": len(rows),
            "max_length": request.max_length,
            "n_tokens": sum(row.whole.n_tokens for row in rows),
            "n_response_tokens": n_response_tokens(parts.whole),
        },
        "adapter": "given" if request.adapter_dir else "random rsLoRA, rank 32, every linear layer but the head",
        "repeats": request.repeats,
        "clock": request.clock,
    }


def _rates(seconds: Seconds, rows: Sequence[BenchRow]) -> dict[str, float]:
    n_tokens = sum(row.whole.n_tokens for row in rows)
    return {name: n_tokens / median(found) for name, found in seconds.items() if name != "render_and_write"}


def _ratios(seconds: Seconds, parts: Contenders, gemm: Sequence[float]) -> dict[str, float | None]:
    """The benchmark's figures; each a median over rounds of a ratio inside the round."""
    engine, around = seconds["engine"], seconds["render_and_write"]
    flops = needed_flops(model_shape(parts.model), parts.whole)
    whole = [one + other for one, other in zip(engine, around, strict=True)]
    inside = parts.model_seconds[-len(engine) :]
    harness, vllm = seconds.get("lm_eval_last_answer"), seconds.get("vllm")
    return {
        "times_faster_than_per_row_transformers": paired_ratio(seconds["per_row"], engine),
        "times_faster_than_lm_eval": paired_ratio(harness, seconds["engine_last_answer"]) if harness else None,
        "times_faster_than_vllm": paired_ratio(vllm, engine) if vllm else None,
        "model_flops_share_of_gemm": median(flops / s / rate for s, rate in zip(engine, gemm, strict=True)),
        "adapter_pass_over_base_pass": paired_ratio(seconds["adapter"], engine),
        "merged_pass_over_base_pass": paired_ratio(seconds["merged"], engine),
        "python_share_outside_the_model": median(1 - i / w for i, w in zip(inside, whole, strict=True)),
    }


def _agreement(losses: dict[str, list[RowLoss]]) -> dict[str, float]:
    """Largest difference of a row's mean loss, in nats per token, between ways that compute the same."""
    pairs = {
        "engine_and_per_row": ("engine", "per_row"),
        "merged_and_adapter": ("merged", "adapter"),
        "engine_and_vllm": ("engine", "vllm"),
        "engine_and_lm_eval": ("engine_last_answer", "lm_eval_last_answer"),
    }
    return {
        name: max(
            abs(a.nll_sum / a.n_response_tokens - b.nll_sum / b.n_response_tokens)
            for a, b in zip(losses[one], losses[two], strict=True)
        )
        for name, (one, two) in pairs.items()
        if one in losses and two in losses
    }


def _memory(request: BenchRequest, device: str, dtype: str) -> Document:
    """Peaks of `memory_rows` and of ten times that, of the process or of the GPU; null where it was not requested."""
    n_few = request.memory_rows
    if not n_few:
        return {"ratio": None, "reason": "not requested"}
    rows = bench_rows(request.corpus_file, Renderer.from_folder(request.model_dir), n_few * GROWTH, request.max_length)
    few, many = (peak_bytes(request, device, dtype, some) for some in (rows[:n_few], rows))
    return {
        "of": "the process" if device == "cpu" else device,
        "n_rows": [n_few, n_few * GROWTH],
        "bytes": [few, many],
        "ratio": many / few,
    }
