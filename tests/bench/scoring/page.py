"""A benchmark run as one Markdown page: every number in it comes from the run."""

from collections.abc import Mapping
from typing import Any

from tests.bench.aims import aims_met
from trainer.runs.page import results_page

# Figure, what it is set against, and what the product aims at: a bound, with where it holds, or no aim.
_LINES = (
    ("times_faster_than_per_row_transformers", "times faster than a loop over rows in transformers", ">= 1.3 on a CPU"),
    ("times_faster_than_lm_eval", "times faster than lm-evaluation-harness's loglikelihood", ">= 1.3 on a CPU"),
    ("times_faster_than_vllm", "times faster than the vLLM engine", "reported beside"),
    ("model_flops_share_of_gemm", "model FLOPs over the machine's own matrix product rate", ">= 0.5"),
    ("adapter_pass_over_base_pass", "a pass with the adapter unmerged over a base pass", "<= 1.35"),
    ("merged_pass_over_base_pass", "a pass with the adapter merged over a base pass", "<= 1.05"),
    ("python_share_outside_the_model", "share of a run outside the model (render, batch, sum, write)", "<= 0.03"),
)
_MEMORY, _MEMORY_AIM = "peak memory, ten times the rows over one", "0.9 to 1.1"
_PEERS = {
    "times_faster_than_per_row_transformers": "a loop over rows in transformers",
    "times_faster_than_lm_eval": "lm-evaluation-harness",
}
_CLOCKS = {"wall": "wall-clock seconds", "cpu": "CPU seconds of the process, for others used the cores too"}
_NAMES = {
    "engine": "torch engine",
    "per_row": "transformers, row by row",
    "adapter": "torch engine, adapter unmerged",
    "merged": "torch engine, adapter merged",
    "vllm": "vLLM engine",
    "engine_last_answer": "torch engine, last answer only",
    "lm_eval_last_answer": "lm-evaluation-harness, last answer only",
}


def page(document: Mapping[str, Any], command: str) -> str:
    """The page; `command` is what ran."""
    machine, rows, model = document["machine"], document["rows"], document["model"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    wrote = [
        f"Written by `{command}` on {machine['date']}.",
        "",
        f"- machine: {machine['device']}, {machine['cores']} cores, {machine['threads']} thread(s) used, "
        f"{machine['cpu_capability']}, {machine['dtype']}; load average {machine['load_average_before']} before and "
        f"{machine['load_average']} at the end",
        f"- model: {model['name']} ({model['shape']}); adapter: {document['adapter']}",
        f"- rows: {rows['n']:,} of {rows['file']}, at most {rows['max_length']} tokens each, "
        f"{rows['n_tokens']:,} tokens of which {rows['n_response_tokens']:,} response tokens; "
        f"{document['repeats']} rounds, contenders in turn",
        f"- versions: {versions}",
    ]
    lines = [
        f"Ratios are medians over rounds of the ratio inside each round; seconds are {_CLOCKS[document['clock']]}.",
        "",
        "| figure | value | aim |",
        "|---|---|---|",
        *(f"| {text} | {_value(document['ratios'][name])} | {aim} |" for name, text, aim in _LINES),
        f"| {_MEMORY} | {_memory(document['peak_memory'])} | {_MEMORY_AIM} |",
        "",
        "| pass | tokens/s | seconds, median | rounds |",
        "|---|---|---|---|",
        *_passes(document),
        "",
        *_notes(document),
        "",
    ]
    return results_page("Scoring speed", finding(document), lines, wrote)


def finding(document: Mapping[str, Any]) -> str:
    """Speed beside the peers, and which aims were met, in one sentence."""
    ratios, rows = document["ratios"], document["rows"]
    said = [f"{ratios[name]:.2f} times as fast as {peer}" for name, peer in _PEERS.items() if ratios[name] is not None]
    figures = [(text, ratios[name], aim) for name, text, aim in _LINES]
    figures.append((_MEMORY, document["peak_memory"]["ratio"], _MEMORY_AIM))
    judged = [
        (text, value, aim) for text, value, aim in figures if value is not None and _is_met(value, aim) is not None
    ]
    missed = [f"{text} ({value:.3f}, aim {aim})" for text, value, aim in judged if not _is_met(value, aim)]
    return (
        f"Scoring was {' and '.join(said)} ({rows['n']:,} rows of at most {rows['max_length']:,} tokens, "
        f"{document['model']['name']}); {aims_met(len(judged) - len(missed), missed)}."
    )


def _is_met(value: float, aim: str) -> bool | None:
    """Whether a figure keeps its aim, as the table writes it; null where it has none."""
    sense, _, bound = aim.partition(" ")
    if sense == ">=":
        return value >= float(bound.split()[0])
    if sense == "<=":
        return value <= float(bound)
    low, to, high = aim.partition(" to ")
    return float(low) <= value <= float(high) if to else None


def _passes(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, rate in document["tokens_per_s"].items():
        found = document["seconds"][name]
        rounds = ", ".join(f"{one:.2f}" for one in found["rounds"])
        lines.append(f"| {_NAMES[name]} | {rate:,.0f} | {found['median']:.2f} | {rounds} |")
    return lines


def _notes(document: Mapping[str, Any]) -> list[str]:
    agreement = "; ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in document["agreement"].items())
    gemm = ", ".join(f"{rate:,.0f}" for rate in document["gemm_gflops_per_s"])
    lines = [
        f"Matrix product of 2,048 x 2,048 in this dtype, GFLOP/s by round: {gemm}.",
        f"Largest difference of a row's mean loss, nats per token: {agreement}.",
    ]
    if document["vllm"]["missing"]:
        lines.append(f"The vLLM engine was not measured: {document['vllm']['missing']}.")
    harness = document["lm_eval"]
    if harness["missing"]:
        lines.append(f"lm-evaluation-harness was not measured: {harness['missing']}.")
    else:
        tried = ", ".join(f"{size}: {one:.1f} s" for size, one in harness["batch_seconds"].items())
        lines.append(
            f"lm-evaluation-harness gets token lists and its fastest batch size here, {harness['batch_size']} "
            f"({tried}). It takes one answer a request, so both score each row's last answer alone."
        )
    return lines


def _memory(found: Mapping[str, Any]) -> str:
    if found["ratio"] is None:
        return f"not measured: {found['reason']}"
    few, many = (f"{size / 2**20:,.0f} MiB" for size in found["bytes"])
    of = "" if found["of"] == "the process" else f" on {found['of']}"
    return f"{found['ratio']:.3f}{of} ({found['n_rows'][0]} rows {few}, {found['n_rows'][1]} rows {many})"


def _value(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
