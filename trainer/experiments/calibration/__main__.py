"""`python -m trainer.experiments.calibration`: the calibration card of a scored corpus."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from curator.console import CommandParser, run_command, say, say_json
from curator.errors import BadInputError
from curator.render.model_source import MODEL_FORMS, locate_model, model_option
from curator.store.store import Store
from trainer.runs.folder import write_json

DESCRIPTION = """\
Says how far a corpus's gap can be trusted: whether it tells held-out misaligned answers from the corpus's own ones, per
domain and with that domain's models held out; how much the gap differs between two paths (engine and plain reference);
how many rows are too long or open like refusals. Needs two corpora in one store, scored by the same models: the pool,
and a probe of misaligned answers with a domain label each."""

EPILOG = """\
examples:
  python -m curator ingest medical-heldout.jsonl --corpus probe --domain medical
  python -m curator score --corpus probe --model DIR --role aligned       (and under each adapter, as the pool was)
  python -m trainer.experiments.calibration --corpus pool --probe probe --out card.md
  python -m trainer.experiments.calibration --corpus pool --probe probe --out card.md \\
      --rescore 20 --model DIR --adapter medical=DIR

OUT.md and OUT.json. Without --rescore the noise is that which the scoring runs recorded. Exit codes: 0, 2 bad input."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the card."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    return run_command(lambda given: _run(given, arguments), args, stopped="stopped")


def _run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from trainer.experiments.calibration.again import Again
    from trainer.experiments.calibration.card import Source, card, markdown
    from trainer.runs.machine import describe
    from trainer.runs.page import shown_command

    if args.rescore < 0:
        raise BadInputError(f"--rescore {args.rescore}: give 0 for none")
    source = Source(Store(args.store).open(create=False), args.corpus, args.probe, args.aligned)
    adapters = [_adapter(text) for text in args.adapter]
    if args.rescore and args.model is None:
        raise BadInputError("scoring rows again needs --model, the aligned model's folder")
    again = Again(args.rescore, args.model, adapters) if args.rescore else None
    found = card(source, seed=args.seed, again=again)
    machine = describe("cpu", str(found["dtype"]))
    command = shown_command("trainer.experiments.calibration", arguments)
    found |= {"command": command, "machine": machine}
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(markdown(found, command, machine), encoding="utf-8")
        write_json(args.out.with_suffix(".json"), found)
    if args.json:
        say_json(found)
    else:
        say(markdown(found, command, machine).rstrip() if args.out is None else f"card: {args.out}")
    return 0


def _adapter(text: str) -> tuple[str, Path]:
    name, equals, place = text.partition("=")
    if not equals or not name:
        raise BadInputError(
            f"--adapter {text!r}: write NAME=ADAPTER, with the misaligned scorer's label or id as the name"
        )
    return name, locate_model(place)


def _parser() -> argparse.ArgumentParser:
    import os

    parser = CommandParser(
        prog="python -m trainer.experiments.calibration", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--store", default=os.environ.get("BALLAST_STORE", "./store"), metavar="DIR",
        help="folder or URL of the store (default: $BALLAST_STORE, else ./store)")  # fmt: skip
    add("--corpus", required=True, metavar="NAME", help="the pool: ordinary rows")
    add("--probe", required=True, metavar="NAME", help="held-out misaligned answers, labelled by domain")
    add("--aligned", metavar="SCORER", help="id, id prefix or label (default: the only one)")
    add(
        "--rescore",
        type=int,
        default=0,
        metavar="N",
        help="score N pool rows again by the plain reference (default: 0)",
    )
    add("--model", type=model_option, metavar="MODEL", help=f"with --rescore, the aligned model: {MODEL_FORMS}")
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=ADAPTER",
        help=f"with --rescore, each misaligned adapter by its scorer's label or id: {MODEL_FORMS}",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default: 0)")
    add("--out", type=Path, metavar="FILE", help="Markdown card; the JSON goes beside it (default: print)")
    add("--json", action="store_true", help="print the card as one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
