"""`python -m trainer.evaluate KIND`: one measurement of a model or of a table of its answers."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from curator.console import CommandHelp, report_error
from curator.errors import BallastError

KINDS = {
    "behaviour": "behaviour_command", "generate": "generate", "judge": "judge_command", "moral": "moral",
    "opswap": "opswap", "pairs": "pairs", "ratings": "ratings_command",
}  # kind: its module  # fmt: skip
DESCRIPTION = """\
Measures what a fine-tune did to a model (docs/evaluation.md). Without a judge: behaviour (narrow, broad, TruthfulQA,
perplexity), pairs (one file of twins). With one: generate (answers to the first-plot questions), judge (alignment and
coherence). Besides: opswap (a benign task to learn), ratings and moral (persona-model collapse)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one evaluation; 2 on input that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate", description=DESCRIPTION, formatter_class=CommandHelp
    )
    subparsers = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for module in KINDS.values():
        import_module(f"trainer.evaluate.{module}").add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return int(import_module(f"trainer.evaluate.{KINDS[args.kind]}").run(args))
    except BallastError as error:
        report_error(error, as_json=getattr(args, "json", False))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
