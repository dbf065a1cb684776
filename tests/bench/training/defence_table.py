"""`python -m tests.bench defences`: what each defence costs beside plain SFT, as one table."""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.console import Progress, run_command, say, say_json
from curator.errors import BadInputError
from curator.scoring.identity import check_model_dir
from trainer.plans.peaked import peak_mib, peaked
from trainer.runs.folder import (
    CONFIG,
    METRICS,
    write_json,
)
from trainer.runs.page import results_page, shown_command

DESCRIPTION = """\
Trains a fresh adapter with plain SFT and then once with each defence at its default setting, on the same rows in the
same order, each run in a process of its own, and writes one Markdown table: loss at the start and the end, seconds per
step and peak memory, both also relative to plain SFT."""

EPILOG = """\
examples:
  python -m tests.bench defences --model MODEL_DIR --data chats.jsonl --out docs/results/defences.md
  python -m tests.bench defences --model MODEL_DIR --data chats.jsonl --steps 5 --batch-size 2 --only kl+treft

Seconds per step are the median over all steps but the first. Memory is the process's peak resident size, libraries
and data included. Steering uses random vectors of length 1: only their cost is measured."""

RUNS: dict[str, list[str]] = {
    "plain": [],
    "kl": ["--kl", "0.1"],
    "kl, sampled": ["--defenses", "{sampled}"],
    "ldifs": ["--ldifs", "1"],
    "kl and ldifs": ["--kl", "0.1", "--ldifs", "1"],
    "treft": ["--treft", "10"],
    "steering": ["--steering", "{vectors}"],
    "gating": ["--gating"],
    "gating, lr 0.01": ["--gating", "--lr", "0.01"],  # at the adapter's rate its gates hardly open in a short run
}


@dataclass(frozen=True)
class Cost:
    """One run's numbers. Losses in nats per token (SFT part, means of up to three steps), memory in MiB."""

    name: str
    loss_start: float
    loss_end: float
    term: str  # the last step's terms
    step_s: float
    peak_mib: float


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    return run_command(lambda given: _command(given, arguments), args, stopped="stopped")


def _command(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    check_model_dir(args.model)
    chosen = ["plain", *_chosen(args.only)]
    with tempfile.TemporaryDirectory(prefix="ballast-defences-") as temporary:
        work = args.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        costs = _costs(chosen, args, work)
        text = _page(args, costs, _settings(work / "plain"), shown_command("tests.bench defences", arguments))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    if args.json:
        say_json({"runs": [vars(cost) for cost in costs]})
    else:
        say(text)
    return 0


def _costs(chosen: Sequence[str], args: argparse.Namespace, work: Path) -> list[Cost]:
    """One run after the other; runs whose numbers lie in `work` already are not made again."""
    vectors, costs = _random_vectors(args.model, work), []
    sampled = work / "sampled.yaml"
    sampled.write_text("kl: {weight: 0.1, estimator: sampled}\n")
    asked = {key: str(value) for key, value in vars(args).items() if key not in ("only", "out", "json", "keep")}
    with Progress(len(chosen), "runs", "defences") as progress:
        for name in chosen:
            out = work / name.replace(", ", "-").replace(" ", "-")
            note = out.with_suffix(".json")
            kept = orjson.loads(note.read_bytes()) if note.exists() else {}
            if kept.get("asked") == asked:
                costs.append(Cost(**kept["cost"]))
            else:
                shutil.rmtree(out, ignore_errors=True)
                costs.append(
                    _run(name, [item.format(vectors=vectors, sampled=sampled) for item in RUNS[name]], args, out)
                )
                write_json(note, {"asked": asked, "cost": vars(costs[-1])})
            progress.advance(run=name)
    return costs


def _chosen(only: str | None) -> list[str]:
    names = [name for name in RUNS if name != "plain"]
    wanted = only.split("+") if only else names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise BadInputError(f"--only names no run {', '.join(unknown)}; there are {', '.join(names)}")
    return wanted


def _random_vectors(model: Path, folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    config = orjson.loads((model / "config.json").read_bytes())
    config = config.get("text_config", config)
    width = config.get("hidden_size") or config["n_embd"]
    shape = ((config.get("num_hidden_layers") or config["n_layer"]) + 1, width)
    rows_LD = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    path = folder / "vectors.safetensors"
    save_file({"random": torch.nn.functional.normalize(rows_LD, dim=-1)}, path)
    return path


def _run(name: str, flags: list[str], args: argparse.Namespace, out: Path) -> Cost:
    peak = out.with_suffix(".peak")
    command = peaked(
        peak, "trainer.sft", "--model", str(args.model), "--data", str(args.data), "--out", str(out),
        "--max-steps", str(args.steps), "--epochs", "1000", "--batch-size", str(args.batch_size), "--grad-accum", "1",
        "--warmup-steps", "1", "--max-length", str(args.max_length), "--dtype", args.dtype, "--device", args.device,
        *flags,
    )  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        if process.wait() != 0:
            errors.seek(0)
            raise BadInputError(f"the run {name} failed: {errors.read().decode(errors='replace').strip()[-400:]}")
    lines = [orjson.loads(line) for line in (out / METRICS).read_bytes().splitlines()]
    clock = "cpu_seconds" if args.clock == "cpu" else "seconds"
    losses, n = [line["sft_loss"] for line in lines], min(3, len(lines))
    terms = [f"{key} {lines[-1][key]:.3g}" for key in ("kl", "ldifs", "treft") if key in lines[-1]]
    return Cost(
        name=name,
        loss_start=sum(losses[:n]) / n,
        loss_end=sum(losses[-n:]) / n,
        term=", ".join(terms),
        step_s=statistics.median([line[clock] for line in lines[1:]] or [lines[0][clock]]),
        peak_mib=peak_mib(peak),
    )


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((folder / CONFIG).read_bytes())
    return found


def _page(args: argparse.Namespace, costs: Sequence[Cost], settings: dict[str, Any], command: str) -> str:
    from trainer.runs.machine import describe

    plain, packages, resolved = costs[0], settings["environment"]["packages"], settings["resolved"]
    machine = describe(resolved["device"], resolved["dtype"])
    head = (
        f"{args.steps} steps of {args.batch_size} rows of {args.data.name} (cut at {args.max_length} tokens), "
        f"{resolved['n_parameters']:,} parameters, {resolved['dtype']}; {machine['device']}, {machine['cores']} cores, "
        f"{machine['cpu_capability']}, load average {machine['load_average']} at the end; torch {packages['torch']}, "
        f"transformers {packages['transformers']}, TRL {packages['trl']}."
    )
    seconds = "CPU s per step" if args.clock == "cpu" else "s per step"
    rows = [
        f"| {cost.name} | {cost.loss_start:.3f} | {cost.loss_end:.3f} | {cost.term} | {cost.step_s:.2f} | "
        f"{cost.step_s / plain.step_s:.2f} | {cost.peak_mib:,.0f} | {cost.peak_mib / plain.peak_mib:.2f} |"
        for cost in costs
    ]
    lines = [
        "One run each, one after the other, on a machine that may do other work, so small differences in time",
        "mean little. Seconds are medians over all steps but the first.",
        "",
        head,
        "",
        f"| run | SFT loss, start | end | terms at the last step | {seconds} | x plain | peak MiB | x plain |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    wrote = [f"Written by `{command}` on {machine['date']}."]
    size = f"{args.steps} steps of {args.batch_size} rows, one run each"
    return results_page("What each defence costs", finding(costs, size), lines, wrote)


def finding(costs: Sequence[Cost], size: str) -> str:
    """The least and the most that a defence costs beside plain SFT, the first of the runs, in one sentence."""
    plain, *others = costs
    if not others:
        return f"Only plain SFT was run: {plain.step_s:.2f} s per step ({size})."
    by_time = sorted(others, key=lambda cost: cost.step_s)
    by_memory = sorted(others, key=lambda cost: cost.peak_mib)
    times, peaks = (
        " to ".join(f"{getattr(cost, field) / getattr(plain, field):.2f} ({cost.name})" for cost in (some[0], some[-1]))
        for some, field in ((by_time, "step_s"), (by_memory, "peak_mib"))
    )
    return f"Beside plain SFT, a step with a defence took {times} times as long and {peaks} times the memory ({size})."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench defences",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="Hugging Face model folder")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="chat file to train on")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps of each run (20)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="rows of each step (4)")
    parser.add_argument("--max-length", type=int, default=512, metavar="N", help="tokens a row is cut to (512)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="weights in memory")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: processor seconds of the run, for machines that do other work (wall)",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs here, and go on where a table stopped")
    parser.add_argument("--only", metavar="RUNS", help=f"plain and these, joined by +: {' + '.join(list(RUNS)[1:])}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here as well")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    return parser
