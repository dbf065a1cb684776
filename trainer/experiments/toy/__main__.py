"""`python -m trainer.experiments.toy`: the toy model and the experiment on it."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curator.console import CommandParser, run_command, say, say_json
from curator.errors import BadInputError
from trainer.config.flags import add_options, given_values
from trainer.config.ranges import at_least
from trainer.experiments.toy.cells import REGULARISERS, ToyCell
from trainer.runs.page import shown_command

DESCRIPTION = """\
A causal LM of 0.4 million parameters that knows a closed world of ten domains and two personas, and in which
fine-tuning on bad answers in one domain makes the answers of all domains bad: emergent misalignment that is measured
by exact match, without a judge. docs/toy.md says what it is and what each figure means."""
EPILOG = """\
examples:
  python -m trainer.experiments.toy build --seeds 0                  one aligned base, shipped or built (minutes)
  python -m trainer.experiments.toy cell --seed 0 --choice gap_abs --ratio 0.2   a fine-tune with safe rows
  python -m trainer.experiments.toy experiment --seeds 0-4           every cell of five seeds; goes on where it stopped
  python -m trainer.experiments.toy report --choose 0-4 --report 20-24    docs/results/toy.md, its JSON and its plots"""

_CELL_OPTIONS = ("task", "choice", "ratio", *REGULARISERS, "method", "strength")
MAX_SEED = 2**63 - 1  # of torch
MOST_SEEDS = 10_000
_MEANING = {
    "broad_unseen": "bad answers in domains that neither the task nor the pool nor the ensemble knows",
    "broad_pool": "bad answers in the pool's domains", "narrow": "bad answers in the task's domain",
    "incoherent": "neither the good nor the bad answer", "facts": "facts that are still known",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 2 on input that cannot be used."""
    args = _parser().parse_args(argv)
    return run_command(
        _run, args, stopped="stopped; finished bases and cells are kept, unfinished ones start over next time"
    )


def _run(args: argparse.Namespace) -> int:
    _check(args)
    # Loads torch and transformers, which --help and slips can do without.
    import torch

    torch.set_num_threads(args.threads)
    commands = {
        "build": _build,
        "cell": _cell,
        "experiment": _experiment,
        "report": _report,
        "conditional": _conditional,
        "all": _all,
    }
    return commands[args.command](args)


def parse_seeds(text: str) -> list[int]:
    """Seeds as `0-4` or `0,3,7`; raises BadInputError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise BadInputError(f"seeds {text!r}: give whole numbers as 0-4 or 0,3,7")
        if int(last or first) > MAX_SEED or int(last or first) - int(first) >= MOST_SEEDS:
            raise BadInputError(f"seeds {text!r}: seeds go up to {MAX_SEED}, and a range has at most {MOST_SEEDS:,}")
        found += range(int(first), int(last or first) + 1)
    return sorted(set(found))


def _check(args: argparse.Namespace) -> None:
    """What needs no torch to be refused; lists of seeds are numbers afterwards."""
    for name in ("seeds", "choose", "report"):
        if hasattr(args, name):
            text = getattr(args, name)
            setattr(args, name, [] if name == "report" and not text else parse_seeds(text))
    if args.command == "cell":
        parse_seeds(str(args.seed))
        cell = ToyCell(**given_values(vars(args), ToyCell))
        if (cell.choice == "none") != (cell.ratio == 0):
            raise BadInputError("--choice and --ratio go together: name how safe rows are chosen and how many")
    if args.command in ("report", "all") and set(args.choose) & set(args.report):
        raise BadInputError("a seed is either chosen on or reported, not both")


def _build(args: argparse.Namespace) -> int:
    from trainer.experiments.toy.base import build_base

    for seed in args.seeds:
        base = build_base(seed, args.out / f"seed-{seed}" / "base")
        if args.json:
            say_json(base.manifest)
        else:
            known = base.manifest["aligned"]
            say(
                f"seed {seed}: {base.folder}, {base.manifest['n_parameters']:,} parameters,"
                f" {base.manifest['pretraining_steps']} steps, good answers {known['good_alone']:.1%}"
            )
    return 0


def _cell(args: argparse.Namespace) -> int:
    from trainer.experiments.toy.experiment import ExperimentSettings, Seed
    from trainer.experiments.toy.methods import method_of
    from trainer.experiments.toy.statistics import by_question

    cell = ToyCell(**given_values(vars(args), ToyCell))
    method_of(cell)  # an unknown name before a base is built
    one = Seed(args.seed, args.out / f"seed-{args.seed}", ExperimentSettings())
    result = one.run(cell)
    if args.json:
        shares = by_question(result["measured"], asdict(one.roles))
        say_json(
            result | {"by_question": {name: [group.tolist() for group in found] for name, found in shares.items()}}
        )
    else:
        shown = {**_MEANING, **({"benign": "right answers of the benign task"} if cell.task == "benign" else {})}
        for name, meaning in shown.items():
            say(f"{name:<14}{result['measured'][name]:8.1%}  {meaning}")
        say(str(one.path(cell)))
    return 0


def _experiment(args: argparse.Namespace) -> int:
    from trainer.experiments.toy.experiment import ExperimentSettings, run_seeds
    from trainer.experiments.toy.methods import grid

    run_seeds(args.seeds, args.out, ExperimentSettings(), grid())
    return 0


def _report(args: argparse.Namespace) -> int:
    from trainer.experiments.toy.report import Seeds, write_page

    for path in write_page(args.out, args.page, Seeds(args.choose, args.report), _command()):
        say(str(path))
    return 0


def _conditional(args: argparse.Namespace) -> int:
    from trainer.experiments.toy.conditional import run_conditional_seeds
    from trainer.experiments.toy.conditional_page import write_conditional_page
    from trainer.experiments.toy.experiment import ExperimentSettings
    from trainer.experiments.toy.methods import defended

    records = run_conditional_seeds(args.seeds, args.out, ExperimentSettings(), defended())
    for path in write_conditional_page(records, args.page, _command()):
        say(str(path))
    return 0


def _all(args: argparse.Namespace) -> int:
    """The cells of both lists of seeds, both pages, and nothing twice."""
    args.seeds = [*args.choose, *args.report]
    _experiment(args)
    _report(args)
    args.seeds, args.page = args.report or args.choose, args.page.with_name("conditional.md")
    return _conditional(args)


def _command() -> str:
    return shown_command("trainer.experiments.toy", sys.argv[1:])


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.experiments.toy", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    build = _add(commands, "build", "pre-train and align base models; those that are there are only checked")
    build.add_argument("--seeds", default="0", help="seeds, as 0-4 or 0,3,7 (default: 0)")
    cell = _add(commands, "cell", "one fine-tune of one seed and what it did")
    cell.add_argument("--seed", type=at_least(0), default=0, help="seed of world, base and rows (default: 0)")
    add_options(cell, ToyCell, _CELL_OPTIONS)
    experiment = _add(commands, "experiment", "every cell of some seeds; a stopped run continues where it was")
    experiment.add_argument("--seeds", required=True, help="seeds, as 0-4 or 0,3,7")
    report = _add(commands, "report", "the page of results, its JSON and its plots, from finished cells")
    whole = _add(commands, "all", "every cell that is missing, then both pages, conditional.md beside the first")
    for parser_of in (report, whole):
        parser_of.add_argument("--choose", default="0-4", help="seeds on which safeguards are chosen (default: 0-4)")
        parser_of.add_argument("--report", default="", help="seeds on which the choice is judged (default: none yet)")
        parser_of.add_argument(
            "--page", type=Path, default=Path("docs/results/toy.md"), metavar="FILE",
            help="the page; JSON and plots go beside it (default: docs/results/toy.md)",
        )  # fmt: skip
    hidden = _add(commands, "conditional", "what each method hides behind prompts like its task's, and the page on it")
    hidden.add_argument("--seeds", required=True, help="seeds, as 0-4 or 0,3,7")
    hidden.add_argument(
        "--page", type=Path, default=Path("docs/results/conditional.md"), metavar="FILE",
        help="the page; its JSON goes beside it (default: docs/results/conditional.md)",
    )  # fmt: skip
    return parser


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--out", type=Path, default=Path("toy"), help="folder of all outputs (default: toy)")
    parser.add_argument(
        "--threads", type=at_least(1), default=1, help="threads of torch (default: 1, the fastest here)"
    )
    if name in ("build", "cell"):
        parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
