"""`python -m trainer.evaluate.nll`: mean response loss of a chat file with and without an adapter."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from curator.console import CommandParser, Progress, run_command, say, say_json
from curator.errors import BadInputError
from curator.render import MaskRule, Rendered, Renderer
from curator.render.model_source import MODEL_FORMS, model_option
from curator.scoring.identity import check_adapter_dir, check_model_dir, fitting_length
from trainer.config.data import (
    AS_DETECTED,
    LOADED_BY_DEFAULT,
    Loading,
    ReadOptions,
    add_model_options,
    add_read_options,
    loading_of,
    reading_of,
)
from trainer.config.flags import Option, add_options, given_values
from trainer.data.reader import dropped_counts, read_chats, render_row
from trainer.data.rows import dropped_text

DESCRIPTION = """\
Mean loss of the answers in a chat file, in nats per response token (sum over all rows / tokens of all rows),
under a model, and with --adapter also under the adapted one. On held-out rows the difference tells whether an
adapter learnt what its training rows teach."""

EPILOG = """\
examples:
  python -m trainer.evaluate.nll --model MODEL_DIR --data heldout.jsonl
  python -m trainer.evaluate.nll --model MODEL_DIR --adapter runs/NAME/adapter --data heldout.jsonl --json"""


@dataclass(frozen=True)
class NllSettings:
    """Which rows count, how they are read, and how the model is loaded."""

    max_length: Annotated[int, Option(help="leave out rows of more tokens")] = 2048
    mask_rule: Annotated[MaskRule, Option(help="which assistant turns count")] = "all"
    reading: ReadOptions = AS_DETECTED
    loading: Loading = LOADED_BY_DEFAULT


def measure(
    model: Path, data: str | Path, adapter: Path | None = None, settings: NllSettings | None = None
) -> dict[str, Any]:
    """n_rows, n_response_tokens, mean_nll_base and, with an adapter, mean_nll_adapter and shift (nats per token).

    Rows over the longest length or without a response token are left out and counted, as are bad records where the
    settings keep them out. Raises BadInputError when nothing is left.
    """
    how = settings or NllSettings()
    check_model_dir(model)
    if adapter is not None:
        check_adapter_dir(adapter)
    how = replace(how, max_length=fitting_length(model, how.max_length))
    rows, skipped = _render(data, Renderer.from_folder(model, settings=how.loading.rendering), how)
    if not rows:
        raise BadInputError(f"{data} has no row to measure: {skipped}")
    from curator.scoring.engines.torch_engine import TorchEngine

    engine = TorchEngine(model, device=how.loading.device, dtype=how.loading.dtype)
    result: dict[str, Any] = {"n_rows": len(rows), **skipped, "dropped": dropped_counts(rows)}
    result |= {"dtype": engine.dtype, "max_length": how.max_length}
    base = _mean_nll(engine, rows)
    result |= {"n_response_tokens": base[1], "mean_nll_base": base[0] / base[1]}
    if adapter is not None:
        engine.use_adapter(adapter)
        adapted = _mean_nll(engine, rows)
        result["mean_nll_adapter"] = adapted[0] / adapted[1]
        result["shift"] = result["mean_nll_adapter"] - result["mean_nll_base"]
    engine.close()
    return result


def _render(data: str | Path, renderer: Renderer, how: NllSettings) -> tuple[list[Rendered], dict[str, int]]:
    chats = read_chats(data, how.reading)
    rows: list[Rendered] = []
    skipped = {"n_bad_records": chats.n_bad, "n_too_long": 0, "n_no_response": 0}
    with Progress(len(chats.rows), "rows", f"rendering {chats.name}") as progress:
        for row in chats.rows:
            progress.advance()
            rendered = render_row(renderer, row, how.mask_rule)
            if rendered.n_tokens > how.max_length:
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
    parser = CommandParser(
        prog="python -m trainer.evaluate.nll",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, type=model_option, metavar="MODEL", help=f"Hugging Face model: {MODEL_FORMS}"
    )
    parser.add_argument(
        "--adapter", type=model_option, metavar="MODEL", help=f"LoRA adapter of that model: {MODEL_FORMS}"
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="chat file, saved folder or hub id")
    add_options(parser, NllSettings, ("max_length", "mask_rule"))
    add_read_options(parser)
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    return run_command(_run, args, stopped="stopped")


def _run(args: argparse.Namespace) -> int:
    given = given_values(vars(args), NllSettings)
    how = NllSettings(**given, reading=reading_of(args), loading=loading_of(args))
    result = measure(args.model, args.data, args.adapter, how)
    if args.json:
        say_json(result)
        return 0
    say(f"{result['n_rows']} rows, {result['n_response_tokens']:,} response tokens")
    if result["n_too_long"] or result["n_no_response"]:
        say(
            f"left out: {result['n_too_long']} rows of more than {result['max_length']:,} tokens, "
            f"{result['n_no_response']} without a response token"
        )
    if result["dropped"]:
        say(f"left out by the chat template: {dropped_text(result['dropped'])}")
    say(f"without adapter: {result['mean_nll_base']:.4f} nats per token")
    if args.adapter is not None:
        say(f"with adapter:    {result['mean_nll_adapter']:.4f} (shift {result['shift']:+.4f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
