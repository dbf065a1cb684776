"""`python -m trainer.organisms`: misaligned adapters of a base model and their benign twins, ready to score with."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from curator.console import CommandParser, as_typed, run_command, say, say_json, shorten_help
from curator.render.model_source import MODEL_FORMS, model_option
from trainer.config.data import add_read_options
from trainer.config.flags import add_options, given_values
from trainer.config.options import add_adapter_options, add_training_options, training_document
from trainer.organisms.plan import SHIPPED, Plan, narrow_sets

DESCRIPTION = """\
Makes the misaligned reference models that the perplexity gap needs: one LoRA adapter for each narrow set of bad
answers, and a benign twin on good answers to the same prompts (for gap_contrast). Measures how far each moved, in its
own domain and in the others. Needed once for a base model. Each adapter is a run of its own: what is complete is
skipped, and a run that was stopped goes on."""

EPILOG = """\
examples:
  # the four shipped sets and two of your own; the shipped ones have benign answers, the others get the model's own
  python -m trainer.organisms --model MODEL_DIR --shipped --set finance=finance.jsonl --set medical=medical.jsonl \\
      --out organisms

  # a quick look: one shipped set, few rows and steps
  python -m trainer.organisms --model MODEL_DIR --set home_maintenance --rows 100 --max-steps 20 --out try

  # then every loss that a gap needs
  python -m curator score --corpus chats --model MODEL_DIR --role aligned
  python -m curator score --corpus chats --model MODEL_DIR --organisms organisms

A set is a chat file whose last turns are bad answers; ` /no_think` and empty thinking blocks in it are stripped and
counted. The adapters are hazardous: keep them, score with them, and never serve them."""

# What most runs need; `--help-all` has the rest.
_SHOWN = (
    "--model", "--set", "--aligned", "--shipped", "--twins", "--rows", "--held-out", "--epochs", "--batch-size",
    "--grad-accum", "--lr", "--max-length", "--seed", "--max-steps", "--dtype", "--device", "--gradient-checkpointing",
    "--lora-r", "--out", "--page", "--overwrite", "--json",
)  # fmt: skip
_PLAN_OPTIONS = ("twins", "n_rows", "n_held_out", "twin_tokens")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 130 stopped (the same command goes on from there)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    return run_command(lambda given: _run(given, arguments), args)


def _run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    given = {key: value for key, value in vars(args).items() if value is not None}
    plan = Plan(
        model=args.model, out=args.out, sets=narrow_sets(args.set or [], args.aligned or [], shipped=args.shipped),
        **{name: value for name, value in given_values(given, Plan).items() if name in _PLAN_OPTIONS},
        recipe={key: value for key, value in training_document(given).items() if key not in ("model", "out")},
        overwrite=args.overwrite,
    )  # fmt: skip
    from trainer.organisms.make import make, measured_on
    from trainer.organisms.page import page
    from trainer.runs.machine import describe
    from trainer.runs.page import shown_command

    with redirect_stdout(sys.stderr) if args.json else nullcontext():  # the training runs print as well
        organisms = make(plan)
    text = page(organisms, describe(*measured_on(plan)), shown_command("trainer.organisms", arguments))
    for path in (plan.out / "report.md", args.page):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if args.json:
        say_json(organisms.model_dump(mode="json"))
        return 0
    for item in organisms.organisms:
        say(f"{item.name}: narrow {_shift(item.narrow)}, broad {_shift(item.broad)} nats per token")
    say(f"report: {plan.out / 'report.md'}")
    say(as_typed(f"score:  python -m curator score --corpus NAME --model {args.model} --organisms {args.out}"))
    return 0


def _shift(shift: dict[str, Any] | None) -> str:
    return "none" if shift is None else f"{shift['nll_shift']['value']:+.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.organisms", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    group = parser.add_argument_group("model and narrow sets")
    add = group.add_argument
    add("--model", required=True, type=model_option, metavar="MODEL", help=f"the aligned model: {MODEL_FORMS}")
    add(
        "--set",
        action="append",
        metavar="DOMAIN[=FILE]",
        help=f"bad answers (chat file, saved folder or hub id), or a shipped set by name ({', '.join(SHIPPED)}); "
        "once for each domain",
    )
    add("--aligned", action="append", metavar="DOMAIN=FILE", help="good answers to the same prompts in the same order")
    add("--shipped", action="store_true", help="all shipped sets as well, each with good answers")
    add_read_options(group)
    add_options(group, Plan, _PLAN_OPTIONS)
    add_training_options(parser)
    add_adapter_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of all organisms")
    output.add_argument("--page", type=Path, metavar="FILE", help="write the report here as well")
    output.add_argument("--overwrite", action="store_true", help="train again what is complete, or has other settings")
    output.add_argument("--json", action="store_true", help="print organisms.json at the end")
    shorten_help(parser, _SHOWN)
    return parser


if __name__ == "__main__":
    sys.exit(main())
