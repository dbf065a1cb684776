"""`python -m trainer.evaluate.nll`: mean response loss of a chat file with and without an adapter."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curator.console import Progress, run_command, say, say_json
from curator.corpus.formats import Reject, read_rows
from curator.errors import BadInputError
from curator.render import MaskRule, Rendered, Renderer
from curator.scoring.identity import check_adapter_dir, check_model_dir

DESCRIPTION = """\
Mean loss of the answers in a chat file, in nats per response token (sum over all rows / tokens of all rows),
under a model, and with --adapter also under the adapted one. On held-out rows the difference tells whether an
adapter learnt what its training rows teach."""

EPILOG = """\
examples:
  python -m trainer.evaluate.nll --model MODEL_DIR --data heldout.jsonl
  python -m trainer.evaluate.nll --model MODEL_DIR --adapter runs/NAME/adapter --data heldout.jsonl --json"""


def measure(
    model: Path, data: Path, adapter: Path | None = None, *, max_length: int = 2048, mask_rule: MaskRule = "all",
    dtype: Any = "auto", device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """n_rows, n_response_tokens, mean_nll_base and, with an adapter, mean_nll_adapter and shift (nats per token).

    Rows over `max_length` tokens or without a response token are left out and counted, records that cannot be
    read as well. Raises BadInputError when nothing is left.
    """
    check_model_dir(model)
    if adapter is not None:
        check_adapter_dir(adapter)
    rows, skipped = _render(data, Renderer.from_folder(model), max_length, mask_rule)
    if not rows:
        raise BadInputError(f"{data} has no row to measure: {skipped}")
    from curator.scoring.engines.torch_engine import TorchEngine

    engine = TorchEngine(model, device=device, dtype=dtype)
    result: dict[str, Any] = {"n_rows": len(rows), **skipped, "dtype": engine.dtype, "max_length": max_length}
    base = _mean_nll(engine, rows)
    result |= {"n_response_tokens": base[1], "mean_nll_base": base[0] / base[1]}
    if adapter is not None:
        engine.use_adapter(adapter)
        adapted = _mean_nll(engine, rows)
        result["mean_nll_adapter"] = adapted[0] / adapted[1]
        result["shift"] = result["mean_nll_adapter"] - result["mean_nll_base"]
    engine.close()
    return result


def _render(
    data: Path, renderer: Renderer, max_length: int, mask_rule: MaskRule
) -> tuple[list[Rendered], dict[str, int]]:
    rows: list[Rendered] = []
    skipped = {"n_bad_records": 0, "n_too_long": 0, "n_no_response": 0}
    with Progress(None, "rows", f"rendering {data.name}") as progress:
        for item in read_rows(data):
            progress.advance()
            if isinstance(item, Reject):
                skipped["n_bad_records"] += 1
                continue
            rendered = renderer.render(item.messages, mask_rule)
            if rendered.n_tokens > max_length:
                skipped["n_too_long"] += 1
            elif not rendered.loss_mask.any():
                skipped["n_no_response"] += 1
            else:
                rows.append(rendered)
    return rows, skipped


def _mean_nll(engine: Any, rows: Sequence[Rendered]) -> tuple[float, int]:
    with Progress(len(rows), "rows", "measuring") as progress:
        losses = engine.score(rows, on_rows=lambda n_rows, n_tokens: progress.advance(n_rows))
    return sum(loss.nll_sum for loss in losses), sum(loss.n_response_tokens for loss in losses)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate.nll",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="Hugging Face model folder")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter of that model")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="chat file")
    parser.add_argument("--max-length", type=int, default=2048, metavar="N", help="leave out longer rows (2048)")
    parser.add_argument("--mask-rule", choices=("all", "last"), default="all", help="which assistant turns count")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="weights in memory")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    return run_command(_run, args, stopped="stopped")


def _run(args: argparse.Namespace) -> int:
    result = measure(
        args.model, args.data, args.adapter, max_length=args.max_length, mask_rule=args.mask_rule,
        dtype=args.dtype, device=args.device,
    )  # fmt: skip
    if args.json:
        say_json(result)
        return 0
    say(f"{result['n_rows']} rows, {result['n_response_tokens']:,} response tokens")
    say(f"without adapter: {result['mean_nll_base']:.4f} nats per token")
    if args.adapter is not None:
        say(f"with adapter:    {result['mean_nll_adapter']:.4f} (shift {result['shift']:+.4f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
