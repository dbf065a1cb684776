"""The check's figures as one Markdown page."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.runs.page import results_page, table, written_by

GIB = 2**30


def page(document: Mapping[str, Any], command: str) -> str:
    """docs/results/gpu.md; `document` is what `tests.gpu.__main__.measure` gives."""
    title = "Rehearsal of the GPU check: tiny shapes on a CPU, no result" if document["rehearsal"] else "On a GPU"
    lines = [
        f"{document['seconds']:.0f} seconds in all.",
        "",
        "## Scoring",
        "",
        "Largest difference of a row's mean loss, in nats per token: the torch engine (packed rows, split head) from "
        "transformers row by row with eager attention, both in the run's dtype; and, for scale, transformers in that "
        "dtype from itself in float32. Within bounds: those of every scoring run (curator/scoring/check.py).",
        "",
        *table(
            ["model", "rows", "engine from transformers", "within bounds", "transformers from float32"],
            [
                [
                    item["model"], item["n_exact"], f"{item['exact']['max_abs']:.4f}",
                    "yes" if item["exact"]["passed"] else "NO", f"{item['rounding']['max_abs']:.4f}",
                ]
                for item in document["scoring"]
            ],
        ),
        "",
        "Speed, median of three passes. Model FLOPs are those that the losses need (no padding, causal half of the "
        "attention, head at response tokens); their share is of the machine's own square matrix product.",
        "",
        *table(
            ["model", "shape", "rows", "tokens/s", "model TFLOP/s", "matrix product TFLOP/s", "share"],
            [
                [
                    item["model"], item["shape"], f"{item['n_rows']:,}", f"{item['tokens_per_s']:,.0f}",
                    f"{item['flops_per_s'] / 1e12:.3g}",
                    f"{item['gemm_flops_per_s'] / 1e12:.3g}", f"{item['share_of_gemm']:.0%}",
                ]
                for item in document["scoring"]
            ],
        ),
        "",
        "## Training",
        "",
        f"{document['training_shape']}. Peak: what torch allocated. Estimate: what `trainer.sft` says before it loads "
        "the weights. Model FLOPs of a LoRA step: 4 for each weight of the linear layers and token.",
        "",
        *table(
            ["run", "estimate (GiB)", "peak (GiB)", "estimate / peak", "s per step", "tokens/s", "model TFLOP/s"],
            [_training_row(item) for item in document["training"]],
        ),
        "",
        "## Not measured",
        "",
        *([f"- {item}" for item in document["left_out"]] or ["Nothing was left out."]),
        "",
    ]  # fmt: skip
    return results_page(title, finding(document), lines, written_by(command, document["machine"]))


def finding(document: Mapping[str, Any]) -> str:
    """How many models were scored within bounds, and how many training runs fitted, in one sentence."""
    exact = [item["exact"]["passed"] for item in document["scoring"]]
    ran = [item["ratio"] for item in document["training"] if "error" not in item]
    memory = f" (the estimate of memory was {min(ran):.2f} to {max(ran):.2f} times their peak)" if ran else ""
    return (
        f"Losses of the torch engine were within bounds of transformers' own for {sum(exact)} of {len(exact)} models; "
        f"{len(ran)} of {len(document['training'])} training runs finished{memory}."
    )


def _training_row(item: Mapping[str, Any]) -> Sequence[object]:
    estimate = f"{item['estimate_bytes'] / GIB:.3g}"
    if "error" in item:
        return [item["run"], estimate, item["error"], None, None, None, None]
    return [
        item["run"], estimate, f"{item['peak_bytes'] / GIB:.3g}", f"{item['ratio']:.2f}", f"{item['step_s']:.2f}",
        f"{item['tokens_per_s']:,.0f}", f"{item['flops_per_s'] / 1e12:.3g}",
    ]  # fmt: skip
