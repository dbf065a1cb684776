"""`python -m trainer.evaluate KIND`: one measurement of a model or of a table of its answers."""

import sys
from collections.abc import Sequence
from importlib import import_module

from curator.console import CommandHelp, CommandParser, run_command

KINDS = {
    "behaviour": "trainer.evaluate.behaviour_command", "generate": "trainer.evaluate.generate_command",
    "judge": "trainer.evaluate.judge_command", "moral": "trainer.evaluate.moral", "opswap": "trainer.evaluate.opswap",
    "pairs": "trainer.evaluate.pairs", "ratings": "trainer.evaluate.ratings_command",
}  # kind: its module  # fmt: skip
DESCRIPTION = """\
Measures how a fine-tune changed a model (docs/evaluation.md). Without a judge: behaviour (narrow, broad, TruthfulQA,
perplexity), pairs (one file of twins). With one: generate (answers to the first-plot questions), judge (alignment and
coherence). Besides: opswap (a benign task to learn), ratings and moral (persona-model collapse)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one evaluation; 2 on input that cannot be used."""
    parser = CommandParser(prog="python -m trainer.evaluate", description=DESCRIPTION, formatter_class=CommandHelp)
    subparsers = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for module in KINDS.values():
        import_module(module).add_parser(subparsers)
    args = parser.parse_args(argv)
    return run_command(import_module(KINDS[args.kind]).run, args, stopped="stopped")


if __name__ == "__main__":
    sys.exit(main())
