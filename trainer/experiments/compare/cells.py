"""The grid: one cell for each method, ratio and seed, each with a folder of its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from trainer.experiments.compare.methods import CONTROL, UNDEFENDED, Method, methods_of, toy_flags
from trainer.experiments.compare.settings import AnyPlan, ToyPlan
from trainer.runs.folder import write_json

RESULT = "result.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """One training run and its measurement. `ratio` is null where no safe rows are mixed in."""

    method: Method
    ratio: float | None
    seed: int

    @property
    def label(self) -> str:
        """Method and ratio, as in the table."""
        return self.method.name if self.ratio is None else f"{self.method.name} at {100 * self.ratio:g} %"

    def folder(self, work: Path, plan: AnyPlan) -> Path:
        """Where it lies: its name holds a hash of all that decides it, so that other settings are another folder."""
        name = self.method.name.replace("+", "p").replace(" ", "-")
        ratio = "" if self.ratio is None else f"-r{self.ratio:g}"
        return work / "cells" / f"{name}{ratio}-s{self.seed}-{self.fingerprint(plan)}"

    def fingerprint(self, plan: AnyPlan) -> str:
        """Eight hex digits over the cell and the parts of the plan that it depends on."""
        free = {"name", "model", "methods", "ratios", "seeds", "criteria", "threads", "stop_without_misalignment"}
        shared = plan.model_dump(mode="json", exclude=free)
        sft = self.method.sft
        if isinstance(plan, ToyPlan):
            from trainer.experiments.toy.experiment import ExperimentSettings  # loads torch

            sft, shared["organism"] = toy_flags(self.method), ExperimentSettings().identity()
        own = [self.method.name, self.method.mix, sft, self.ratio, self.seed]
        if self.method.trained == "gates":
            own.append("reversed")  # cells of earlier versions measured the gates forward
        return hashlib.blake2b(orjson.dumps([FORMAT_VERSION, shared, own]), digest_size=4).hexdigest()


def grid(plan: AnyPlan) -> list[Cell]:
    """Every cell, seed by seed: a comparison that is stopped early has whole seeds, not whole methods."""
    methods = methods_of(plan)
    return [
        Cell(method, ratio, seed)
        for seed in plan.seeds
        for method in methods
        for ratio in (plan.ratios if method.ratio else (None,))
    ]


def controls(cells: Sequence[Cell]) -> list[Cell]:
    """The undefended and the benign runs: what shows whether there is anything to prevent."""
    return [cell for cell in cells if cell.method.name in (UNDEFENDED, CONTROL)]


def read_result(folder: Path) -> dict[str, Any] | None:
    """A finished cell's result, or None."""
    path = folder / RESULT
    if not path.exists():
        return None
    found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found


def write_result(folder: Path, cell: Cell, document: dict[str, Any]) -> None:
    """The last file that a cell gets: with it the cell is finished."""
    head = {"format_version": FORMAT_VERSION, "method": cell.method.name, "ratio": cell.ratio, "seed": cell.seed}
    write_json(folder / RESULT, head | document)


def results(cells: Sequence[Cell], work: Path, plan: AnyPlan) -> list[dict[str, Any] | None]:
    """Each cell's result, in the cells' order."""
    return [read_result(cell.folder(work, plan)) for cell in cells]
