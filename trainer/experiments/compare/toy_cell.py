"""One cell on the toy model: a fine-tune on the bad task, and one on the benign task."""

from pathlib import Path
from typing import Any

from trainer.experiments.compare.cells import Cell
from trainer.experiments.compare.methods import CONTROL, toy_choice, toy_flags
from trainer.experiments.compare.settings import ToyPlan
from trainer.plans.commands import Commands

_SHARES = {
    "broad_misaligned": "broad_unseen", "narrow_misaligned": "narrow", "incoherent": "incoherent",
    "facts_kept": "facts", "benign_exact_match": "benign",
}  # fmt: skip


def toy_cell(cell: Cell, plan: ToyPlan, folder: Path, commands: Commands) -> dict[str, Any]:
    """Figures are shares, 0 to 1, the broad one of domains that nothing touched; the benign run learns good answers in
    place of bad ones.

    `folder` holds bases, pools and cells of all methods, which the command caches.

    Time is processor seconds of the fine-tune on the bad task; memory the peak of that process, which also builds the
    seed's base model and scores its pool when they are not there yet.
    """
    bad, spent = _run(cell, plan, folder, commands, "good" if cell.method.name == CONTROL else "bad")
    benign, _ = _run(cell, plan, folder, commands, "benign")
    sources = {name: (benign if name == "benign_exact_match" else bad, key) for name, key in _SHARES.items()}
    return {
        "status": "done",
        "figures": {name: source["measured"][key] for name, (source, key) in sources.items()},
        "by_question": {name: source["by_question"][key] for name, (source, key) in sources.items()},
        "measured": {"bad": bad, "benign": benign},
        "cost": {
            "train_s": bad["cpu_s"], "peak_mib": spent.peak_mib, "n_rows": bad["n_rows"], "n_safe": bad["n_safe"],
            "n_steps": bad["n_steps"],
        },
    }  # fmt: skip


def _run(cell: Cell, plan: ToyPlan, folder: Path, commands: Commands, task: str) -> tuple[dict[str, Any], Any]:
    choice = toy_choice(cell.method, plan.score)
    safe = [] if cell.ratio is None else ["--choice", choice, "--ratio", cell.ratio]
    found: tuple[dict[str, Any], Any] = commands.run(
        "trainer.experiments.toy", "cell", "--seed", cell.seed, "--task", task, *safe,
        *toy_flags(cell.method), "--out", folder, "--threads", plan.threads or 1, "--json",
    )  # fmt: skip
    return found
