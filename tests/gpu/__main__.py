"""`python -m tests.gpu`: what only a GPU can show, in under ten minutes and without a network, as one page."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curator.console import run_command, say, say_json
from curator.errors import BadInputError
from curator.scoring.identity import check_model_dir
from trainer.runs.page import shown_command

DESCRIPTION = """\
Measures on one GPU, with models of random weights that are made on the spot: whether the torch engine's losses in
bfloat16 are those of plain transformers; its tokens per second and model FLOPs, on SmolLM2 where its folder is given
and on 2048 x 16 layers x 128,000 words; and three training steps under each defence on a model of 7B shape, peak memory
beside the estimate. Takes about 20 GB of disk for a while. --rehearse runs every line of it on a CPU with tiny shapes.

Exit codes: 0 done, 1 a part failed or losses differ (the page says so), 2 bad input."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the page."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    return run_command(lambda given: _command(given, arguments), args, stopped="stopped")


def _command(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    if args.smollm is not None:
        check_model_dir(args.smollm)
    with tempfile.TemporaryDirectory(prefix="ballast-gpu-", dir=args.work) as work:
        document = measure(args, Path(work))
    from tests.gpu.page import page

    text = page(document, shown_command("tests.gpu", arguments))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    if args.json:
        say_json(document)
    else:
        say(text)
    exact = all(item["exact"]["passed"] for item in document["scoring"])
    return 0 if exact and not document["failed"] else 1


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All parts in turn; a part that fails is named, and the others still run. Raises BadInputError without a GPU."""
    import torch

    from curator.scoring.engines.torch_model import resolve_dtype
    from tests.gpu.scoring import measure_scoring
    from tests.gpu.sizes import ON_GPU, REHEARSAL, Bench
    from tests.gpu.training import measure_defences
    from tests.trainer.shapes import shaped_model
    from trainer.runs.machine import describe

    if not args.rehearse and not torch.cuda.is_available():
        raise BadInputError("no GPU is visible to torch here: --rehearse runs the same on a CPU with tiny shapes")
    device = "cpu" if args.rehearse else "cuda"
    dtype = "bfloat16" if args.rehearse else resolve_dtype("auto", device)
    bench = Bench(REHEARSAL if args.rehearse else ON_GPU, device, dtype, work, args.smollm)
    began, left_out, failed = time.monotonic(), [], []
    scoring: list[dict[str, Any]] = []
    training: list[dict[str, Any]] = []

    def part(name: str, run: Callable[[], Any]) -> None:
        if time.monotonic() - began > 60 * args.minutes:
            left_out.append(f"{name}: {args.minutes:g} minutes were over")
            return
        sys.stderr.write(f"{time.monotonic() - began:5.0f} s  {name}\n")
        try:
            run()
        except Exception as error:  # the other parts are worth their time all the same
            failed.append(name)
            left_out.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def throughput() -> None:
        folder = shaped_model(work / "throughput", bench.sizes.throughput, device=device, dtype=dtype)
        scoring.append(measure_scoring(bench, f"random {bench.sizes.throughput.name}", folder))

    def defences() -> None:
        for item in measure_defences(bench):
            training.append(item)
            sys.stderr.write(f"{time.monotonic() - began:5.0f} s    {item['run']}\n")

    smollm = args.smollm
    if smollm is None:
        left_out.append("SmolLM2: its folder was not given (--smollm DIR)")
    else:
        part("scoring, SmolLM2", lambda: scoring.append(measure_scoring(bench, smollm.resolve().name, smollm)))
    part("scoring, random weights", throughput)
    part("training, each defence", defences)
    n_rows, n_tokens, n_labelled = bench.sizes.micro_batch
    return {
        "rehearsal": args.rehearse,
        "machine": describe(device, dtype),
        "seconds": time.monotonic() - began,
        "scoring": scoring,
        "training": training,
        "training_shape": f"A Llama of random weights, {bench.sizes.seven.name}, with a rank-32 adapter on seven "
        f"projections, {n_rows} rows of {n_tokens:,} tokens of which {n_labelled} are trained, {bench.sizes.steps} "
        "steps, gradient checkpointing (the last run: one row, none)",
        "left_out": left_out,
        "failed": failed,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="every line of it on a CPU, with tiny shapes")
    parser.add_argument("--smollm", type=Path, metavar="DIR", help="model folder of SmolLM2 (make demo makes one)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here as well")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where temporary models lie (default: as tempfile)")
    parser.add_argument("--minutes", type=float, default=8.0, metavar="M", help="begin no part after so many (8)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
