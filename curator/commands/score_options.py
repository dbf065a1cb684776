"""The options of `python -m curator score`, in the groups that its --help shows."""

import argparse
from pathlib import Path

from curator.scoring.request import DEFAULT_MAX_LENGTH


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Whose losses, and what that model stands for."""
    add = parser.add_argument_group("the model").add_argument
    add("--model", required=True, metavar="DIR", type=Path,
        help="Hugging Face model folder with its tokenizer (the tokenizer alone is enough for "
        "--engine server)")  # fmt: skip
    add("--adapter", metavar="DIR", type=Path, help="LoRA adapter folder (PEFT) on that model")
    add("--role", choices=["aligned", "misaligned", "benign"], help="what the model stands for (always needed, except "
        "with --organisms)")  # fmt: skip
    add("--organisms", metavar="DIR", type=Path,
        help="instead of --adapter, --role, --domain: every adapter that `trainer.organisms` left in DIR")  # fmt: skip
    add("--domain", metavar="TEXT", help="narrow field a misaligned or benign model was tuned on (required for them)")
    add("--label", metavar="NAME", help="name for people and recipes (default: name of the adapter or model folder)")
    add("--merge-adapter", action="store_true",
        help="merge adapters into the weights: faster, another measure (give it for every model of a gap), and its "
        "error is measured on the rows scored again")  # fmt: skip


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """Which rows, and which of their tokens."""
    add = parser.add_argument_group("rows").add_argument
    add("--sample", type=int, metavar="N", help="score N rows only; a larger N with one seed contains a smaller")
    add("--seed", type=int, default=0, metavar="S", help="seed of the sample (default: 0)")
    add("--sample-fit", action="store_true", help="sample only rows that can be scored: in the window, with a response")
    add("--max-length", type=int, default=DEFAULT_MAX_LENGTH, metavar="T",
        help=f"window in tokens; longer rows are marked, not scored (default: {DEFAULT_MAX_LENGTH})")  # fmt: skip
    add("--mask-rule", choices=["all", "last"], default="all",
        help="score all assistant turns or the last (default: all)")  # fmt: skip
    add("--check-rows", type=int, metavar="N",
        help="rows to score again, in another order and row by row in plain torch; 0: none, which is recorded "
        "(default: 1 %% of the new rows, at least 20)")  # fmt: skip


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """What runs the model, and how."""
    add = parser.add_argument_group("engine").add_argument
    add("--engine", choices=["torch", "vllm", "server", "ray"], default="torch",
        help="what runs the model: torch or vLLM here, a running vLLM server, or Ray workers with one of "
        "those each (default: torch)")  # fmt: skip
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
        help="auto: bfloat16 where the hardware multiplies it natively, else float32")  # fmt: skip
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: CUDA where there is any)")
    add("--batch-tokens", type=int, metavar="T", help="tokens in one forward pass, padding included")
    add("--threads", type=int, metavar="N", help="CPU threads (default: measured, one on cores that others use)")
    add("--workers", type=int, metavar="N", help="with --engine ray: engines at work (default: 2)")
    add("--worker-engine", choices=["torch", "vllm", "server"],
        help="with --engine ray: what each runs (default: torch)")  # fmt: skip
    add("--ray-address", metavar="A", help="with --engine ray: a running cluster (default: RAY_ADDRESS, else Ray here)")


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """A vLLM server that runs already."""
    add = parser.add_argument_group("with --engine server").add_argument
    add("--server-url", metavar="URL", help="where it listens, such as http://localhost:8000")
    add("--server-model", metavar="NAME", help="the server's name of the model or of its adapter "
        "(with --organisms: leave it out, each is asked for by its own name)")  # fmt: skip
    add("--server-version", metavar="TEXT", help="engine and version, where the server does not tell")
    add("--concurrency", type=int, metavar="N", help="requests to the server at a time (default: 16)")
    add("--declare-weights-sha256", metavar="HEX", help="hash of the weights the server runs (default: of --model DIR)")
    add("--declare-adapter-sha256", metavar="HEX", help="hash of the adapter behind --server-model, if it is one")


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    """What a pass will take."""
    add = parser.add_argument_group("time and price").add_argument
    add("--dry-run", action="store_true",
        help="store nothing: count tokens, measure a few seconds, print hours and price")  # fmt: skip
    add("--passes", type=int, metavar="K", help="with --dry-run: models that will be scored like this (default: 1)")
    add("--price-per-hour", type=float, metavar="P", help="price of this machine per hour: shows the cost so far")
