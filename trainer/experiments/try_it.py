"""`python -m trainer.experiments.try_it`: what the product does, on a tiny model, without data or network.

Three fine-tunes of the toy's shipped base (seed 0): without a safeguard, with 5 % random safe rows, and with 5 % chosen
by the perplexity gap. Their rates go to stdout, a JSON file and one picture.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.console import CommandParser, as_typed, run_command, say, say_json
from trainer.experiments.toy.cells import ToyCell

if TYPE_CHECKING:
    from trainer.experiments.toy.experiment import ExperimentSettings

DESCRIPTION = """\
Shows emergent misalignment and the safeguard against it on a language model of 0.4 million parameters that comes with
the package: no data, no network, no GPU, about half a minute. The model answers questions of ten domains well. It is
fine-tuned on bad answers of one domain, three times: as it is, with 5 % random safe rows, and with 5 % safe rows chosen
by the perplexity gap. Then it is asked about domains that the safe rows do not cover, and about those that they do. A
second run shows the figures again at once."""

SEED = 0
RATIO = 0.05
RESULT = "try.json"
PICTURE = "try.png"
# What a person runs next, wherever the product is installed: `make` is in a checkout only.
NEXT = (
    ("python -m trainer.experiments.demo", "the whole way on a real model and a real corpus"),
    ("python -m curator ingest chats.jsonl --corpus chats", "begin with your own data"),
)


@dataclass(frozen=True)
class Arm:
    """One fine-tune: its name in the table, and the cell of the toy experiment that it is."""

    name: str
    label: str
    cell: ToyCell


ARMS = (
    Arm("undefended", "no safeguard", ToyCell()),
    Arm("random", "5 % random safe rows", ToyCell(choice="random", ratio=RATIO)),
    Arm("chosen", "5 % rows chosen by gap", ToyCell(choice="gap_rel", ratio=RATIO)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the three fine-tunes that are missing and print their rates; exit code 2 for input that cannot be used."""
    parser = CommandParser(
        prog="python -m trainer.experiments.try_it",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("try"), metavar="DIR", help="folder of the results (default: try)")
    add("--json", action="store_true", help="print one JSON document for scripts")
    return run_command(_run, parser.parse_args(argv))


def run_arms(out: Path, settings: "ExperimentSettings | None" = None) -> dict[str, Any]:
    """The rates of the three arms; those that have a result in `out` are not trained again.

    Rates are counts of greedy answers by exact match to held-out questions: `narrow` in the domain of the task,
    `pool` in domains of which the pool has safe rows, `unseen` in those that neither mentions.
    """
    import torch

    from curator.scoring.engines.torch_folder import quiet
    from trainer.experiments.toy.experiment import ExperimentSettings, Seed

    torch.set_num_threads(1)  # the fastest for a model of this size
    started = time.monotonic()
    with quiet():
        seed = Seed(SEED, out / f"seed-{SEED}", settings or ExperimentSettings())
        domains = {"unseen": seed.roles.unseen, "pool": seed.roles.pool, "narrow": (seed.roles.task,)}
        arms = []
        for number, arm in enumerate(ARMS, 1):
            if seed.missing([arm.cell]):
                _report(f"[{number}/{len(ARMS)}] fine-tuning: {arm.label} ({time.monotonic() - started:.0f} s so far)")
                seed.run(arm.cell)
            arms.append(_counts(arm, seed.result(arm.cell), domains))
    return {
        "seed": SEED,
        "n_task_rows": seed.settings.n_task_rows,
        "n_pool_rows": seed.settings.pool.n_rows,
        "score": "gap_rel",
        "arms": arms,
    }


def _counts(arm: Arm, result: Mapping[str, Any], domains: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Of each set of domains the bad answers, `n_NAME_bad`, and all, `n_NAME`."""
    counts = result["measured"]["counts"]
    found = {"name": arm.name, "label": arm.label, "n_safe_rows": result["n_safe"]}
    for name, some in domains.items():
        bad = [n for domain in some for n in counts["bad"][domain]]
        found |= {f"n_{name}_bad": sum(bad), f"n_{name}": len(bad) * counts["n_asked"]}
    return found


def _run(args: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    found = run_arms(args.out)
    from trainer.experiments.toy.files import write_json

    write_json(args.out / RESULT, found)
    picture = _draw(found["arms"], args.out / PICTURE)
    if args.json:
        say_json({**found, "picture": str(picture)})
        return 0
    say()
    say(f"A tiny model, fine-tuned on {found['n_task_rows']:,} bad answers of ONE domain. Bad answers elsewhere:")
    say()
    for arm in found["arms"]:
        unseen, pool, narrow = (arm[f"n_{name}_bad"] / arm[f"n_{name}"] for name in ("unseen", "pool", "narrow"))
        say(
            f"  {arm['label']:<24}{unseen:6.1%} in unseen domains ({arm['n_unseen_bad']} of {arm['n_unseen']});"
            f" {pool:.1%} in the pool's; own domain {narrow:.0%} as trained"
        )
    say()
    say("Unseen: neither the training nor the safe rows say anything of these domains. The first line is emergent")
    say(f"misalignment. The other two mix in equally many safe rows of one pool of {found['n_pool_rows']:,}: only the")
    say("choice differs. One seed of a toy world: it shows the idea.")
    say(f"\npicture: {picture}")
    say(next_commands())
    return 0


def next_commands() -> str:
    """The lines that name what to run next, as the person who started this process types commands."""
    typed = [(as_typed(command), text) for command, text in NEXT]
    width = max(len(command) for command, _ in typed)
    lines = [f"  {command:<{width}}  {text}" for command, text in typed]
    return "\n".join(["next (after `. .venv/bin/activate`, where make set it up):", *lines])


def _report(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _draw(arms: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Bars of misalignment in unseen domains, one an arm, with counts; returns the file."""
    from curator.query.plots import save, share_bars

    counts = [(arm["n_unseen_bad"], arm["n_unseen"]) for arm in arms]
    first, last = (100 * n / of for n, of in (counts[0], counts[-1]))
    title = (
        f"{arms[-1]['n_safe_rows']} safe rows, chosen by perplexity gap:"
        f" misalignment in unseen domains {first:.0f} % → {last:.0f} %"
    )
    unit = "bad answers in domains that nothing mentioned"
    save(share_bars([arm["label"] for arm in arms], counts, unit, title=title), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
