"""`python -m tests.bench scoring`: the scoring benchmark."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from curator.console import run_command, say, say_json

DESCRIPTION = """\
Times the torch engine against a plain loop over transformers and (with the extra `bench`) lm-evaluation-harness, on
the same rows of a chat file, in turns; and says which share of the machine's own matrix product rate it reaches, what
an adapter costs, what is spent outside the model, and whether memory grows with the rows. No store is read."""

EXAMPLES = """\
  python -m tests.bench scoring --model models/instruct --corpus chats.json --rows 40 --json
  python -m tests.bench scoring --model models/instruct --corpus chats.json --rows 40 --out docs/results/scoring.md
  python -m tests.bench scoring --model models/instruct --corpus chats.json --shape 2048x16x128000 --device cuda"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    return run_command(run, _parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench scoring", description=DESCRIPTION, epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", type=Path, help="Hugging Face model folder with its tokenizer")
    add("--corpus", required=True, metavar="FILE", type=Path, help="chat file to take rows from")
    add("--shape", metavar="HxLxV", help="instead of the model's weights a random Llama of width H, L layers and V "
        "tokens, such as 2048x16x128000, with the model's tokenizer")  # fmt: skip
    add("--adapter", metavar="DIR", type=Path, help="LoRA adapter folder (default: a random one)")
    add("--rows", type=int, default=1_000, metavar="N", help="conversations to score (default: 1000)")
    add("--repeats", type=int, default=3, metavar="R", help="rounds (default: 3)")
    add("--max-length", type=int, default=512, metavar="T", help="most tokens of a conversation (default: 512)")
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="as for `score` (default: auto)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: CUDA where there is any)")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1, the steadiest on shared cores)")
    add(
        "--memory-rows",
        type=int,
        default=64,
        metavar="N",
        help="rows of the smaller of two runs that measure peak memory, the other has ten times as many (default: 64, "
        "so that the larger spans several blocks of tokens; 0: neither)",
    )
    add("--clock", choices=["wall", "cpu"], default="wall",
        help="cpu: count the process's CPU seconds, for cores that others use meanwhile (default: wall)")  # fmt: skip
    add("--out", metavar="FILE", type=Path, help="also write the figures as a Markdown page")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, and print or write the figures."""
    from tests.bench.scoring import BenchRequest
    from tests.bench.scoring.page import page
    from tests.bench.scoring.shapes import parse_shape

    request = BenchRequest(
        model_dir=args.model, corpus_file=args.corpus, adapter_dir=args.adapter, rows=args.rows, repeats=args.repeats,
        max_length=args.max_length, device=args.device, dtype=args.dtype, threads=args.threads,
        memory_rows=args.memory_rows, clock=args.clock, shape=None if args.shape is None else parse_shape(args.shape),
    )  # fmt: skip
    from tests.bench.scoring.run import run_bench  # imports torch, so after the options are in order

    document = run_bench(request)
    text = page(document, _command(args))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    if args.json:
        say_json(document)
    else:
        say(text.rstrip())
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command as another person would give it: names of files, not where they lay."""
    words = ["python -m tests.bench scoring", "--model", args.model.resolve().name, "--corpus", args.corpus.name]
    words += ["--rows", str(args.rows), "--repeats", str(args.repeats), "--max-length", str(args.max_length)]
    words += ["--dtype", args.dtype, "--threads", str(args.threads), "--memory-rows", str(args.memory_rows)]
    words += ["--clock", args.clock, "--device", args.device]
    words += ["--shape", args.shape] if args.shape else []
    words += ["--adapter", args.adapter.name] if args.adapter else []
    return " ".join([words[0], *map(shlex.quote, words[1:])])
