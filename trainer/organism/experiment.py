"""All cells of some seeds, each in a file of its own: a run that was stopped goes on where it was."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from curator.orders import Allocation, schedule
from curator.progress import Progress
from curator.seeds import child_seed, permutation
from curator.store import Store
from trainer.defenses import KlSettings
from trainer.modelling import save_model
from trainer.organism.base import Base, build_base
from trainer.organism.cells import Cell
from trainer.organism.finetune import FineTuneSettings, Tuned, fine_tuned
from trainer.organism.gaps import ScoredPool, Scorer, pick, score_pool, scored_pool
from trainer.organism.measuring import measure
from trainer.organism.rows import Pool, PoolSettings, Roles, TaskKind, draw_pool, roles, task_rows
from trainer.organism.settings import BaseSettings, Strict
from trainer.organism.statistics import separation
from trainer.organism.world import ROW_LEN, Ints


class ExperimentSettings(Strict):
    """Everything that decides the results of a seed. `n_*_rows` are rows of one epoch."""

    base: BaseSettings = BaseSettings()
    pool: PoolSettings = PoolSettings()
    tune: FineTuneSettings = FineTuneSettings(lr=1e-3)
    n_task_rows: int = Field(default=1600, ge=1)
    ensemble: FineTuneSettings = FineTuneSettings()
    n_ensemble_rows: int = Field(default=800, ge=1)

    def identity(self) -> str:
        """A hash of all settings: results of other settings lie in other folders."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Mix:
    """Rows of a fine-tune in their order, (N, ROW_LEN), and which of them are safe, (N,)."""

    rows: torch.Tensor
    safe: torch.Tensor


def interleave(task: Ints, safe: Ints, seed: int) -> Mix:
    """Task rows in their order with the safe rows spread evenly among them, as the product's order `even` has it."""
    allocation = Allocation(len(task), (len(safe),), Fraction(len(safe), len(task)))
    order = schedule(allocation, "even", seed)
    shuffled = safe[permutation(len(safe), child_seed(seed, "order:pool"))]  # the best must not all come first
    is_safe = order < 0
    rows = np.empty((len(order), task.shape[1]), dtype=np.int64)
    rows[~is_safe], rows[is_safe] = task[order[~is_safe]], shuffled[-1 - order[is_safe]]
    return Mix(torch.from_numpy(rows), torch.from_numpy(is_safe))


class Seed:
    """One seed's base, pool and cells under `folder`; what is there already is not made again."""

    def __init__(self, seed: int, folder: Path, settings: ExperimentSettings) -> None:
        self.seed, self.folder, self.settings = seed, folder, settings
        self.base: Base = build_base(seed, folder / "base", settings.base)
        self.roles: Roles = roles(self.base.world)
        self.pool: Pool = draw_pool(self.base.world, self.roles, settings.pool)
        self.work = folder / settings.identity()
        self._scored: dict[bool, ScoredPool] = {}

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that have no result yet."""
        return [cell for cell in cells if not self.path(cell).exists()]

    def path(self, cell: Cell) -> Path:
        """Where a cell's result stands."""
        return self.work / "cells" / f"{cell.name}.json"

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train and measure one cell and write its result."""
        world, settings = self.base.world, self.settings
        task = task_rows(world, self.roles.task, cell.task, settings.n_task_rows)
        chosen = self._chosen(cell)
        mix = interleave(task, self.pool.tokens[chosen], self.seed)
        defences = [KlSettings(weight=cell.kl, tokens="response")] if cell.kl else []
        tune = fine_tuned(
            self.base.model, mix.rows, mix.safe, settings.tune, defences=defences, seed=_torch_seed(self.seed, "cell")
        )
        with tune as tuned:
            result = {
                "seed": self.seed, "cell": asdict(cell), "measured": measure(tuned.model, world).as_dict(),
                "n_safe": len(chosen), "n_revealing": int(self.pool.revealing[chosen].sum()), **_cost(tuned),
            }  # fmt: skip
        _write_json(self.path(cell), result)
        return result

    def describe(self) -> dict[str, Any]:
        """Of the base and its ensemble: what each knows and does, and how many revealing rows each gap puts on top."""
        path = self.work / "seed.json"
        if path.exists():
            return dict(json.loads(path.read_text()))
        world = self.base.world
        own = self.scored(own_domain=True)
        result = {
            "seed": self.seed, "roles": asdict(self.roles), "base": self.base.manifest,
            "aligned": measure(self.base.model, world).as_dict(),
            "ensemble": {path.parent.name: json.loads(path.read_text()) for path in self._members()},
            "top": self.top, "held_out": self._found(self.scored()), "with_own_domain": self._found(own),
            "losses": self._losses(),
        }  # fmt: skip
        _write_json(path, result)
        return result

    def scored(self, *, own_domain: bool = False) -> ScoredPool:
        """The pool's gaps; the misaligned model of the task's own domain is held out unless asked for."""
        if own_domain not in self._scored:
            held = () if own_domain else (_domain(self.roles.task),)
            self._scored[own_domain] = scored_pool(self._store(), self.base.world, self.pool, held)
        return self._scored[own_domain]

    def _chosen(self, cell: Cell) -> Ints:
        n_safe = round(cell.ratio * self.settings.n_task_rows)
        if not n_safe:
            return np.empty(0, dtype=np.int64)
        assert cell.choice != "none"
        scored = self.scored()
        if cell.pool == "unrevealing":
            scored = scored.only(~self.pool.revealing[scored.row])
        return pick(scored, cell.choice, n_safe, self.seed)

    def _store(self) -> Store:
        scorers = [Scorer("aligned", "aligned")]
        wanted: list[tuple[TaskKind, int]] = [("bad", self.roles.task)]
        wanted += [(kind, domain) for domain in self.roles.ensemble for kind in ("bad", "good")]
        for kind, domain in wanted:
            role = "misaligned" if kind == "bad" else "benign"
            scorers.append(Scorer(f"{role}-{domain}", role, _domain(domain), self._adapter(kind, domain)))
        return score_pool(self.base.world, self.pool, self.base.folder, scorers, self.work)

    def _adapter(self, kind: TaskKind, domain: int) -> Path:
        """An ensemble member's adapter folder, trained unless it is there."""
        folder = self.work / "ensemble" / f"{kind}-{domain}"
        if not (folder / "measured.json").exists():
            rows = interleave(
                task_rows(self.base.world, domain, kind, self.settings.n_ensemble_rows),
                np.empty((0, ROW_LEN), dtype=np.int64),
                self.seed,
            )
            options = {"seed": _torch_seed(self.seed, f"ensemble {kind} {domain}")}
            with fine_tuned(self.base.model, rows.rows, rows.safe, self.settings.ensemble, **options) as tuned:
                save_model(tuned.model, folder)
                _write_json(folder / "measured.json", measure(tuned.model, self.base.world).as_dict() | _cost(tuned))
        return folder

    def _members(self) -> list[Path]:
        return sorted((self.work / "ensemble").glob("*/measured.json"))

    def _found(self, scored: ScoredPool) -> dict[str, Any]:
        """For each gap: how well it tells revealing rows from facts, and what it puts on top.

        `revealing` counts among the top rows, `outside` those of domains without a misaligned model.
        """
        is_revealing = self.pool.revealing[scored.row]
        found = {}
        for score, gap in scored.gaps.items():
            chosen = pick(scored, score, self.top, self.seed)
            outside = self.pool.revealing[chosen] & np.isin(self.pool.domain[chosen], self.roles.others)
            found[score] = {
                "auc": separation(gap[is_revealing], gap[~is_revealing]),
                "revealing": int(self.pool.revealing[chosen].sum()),
                "outside": int(outside.sum()),
            }
        return found

    @property
    def top(self) -> int:
        """As many rows as the pool has revealing ones: a perfect score puts exactly those on top."""
        return int(self.pool.revealing.sum())

    def _losses(self) -> dict[str, Any]:
        """Mean losses in nats per answer of revealing rows and of facts, by role of the model."""
        scored = self.scored()
        parts = {"revealing": self.pool.revealing[scored.row], "facts": ~self.pool.revealing[scored.row]}
        return {
            part: {role: float(loss[where].mean()) for role, loss in scored.mean_nll.items()}
            for part, where in parts.items()
        }


def run_seeds(seeds: Sequence[int], folder: Path, settings: ExperimentSettings, cells: Sequence[Cell]) -> None:
    """Every missing cell of every seed."""
    for seed in seeds:
        one = Seed(seed, folder / f"seed-{seed}", settings)
        missing = one.missing(cells)
        with Progress(len(missing), "cells", f"seed {seed}") as bar:
            for cell in missing:
                result = one.run(cell)
                bar.advance(cell=cell.name, broad=f"{result['measured']['broad']:.2f}")
        one.describe()


def _domain(number: int) -> str:
    return f"d{number}"


def _torch_seed(seed: int, name: str) -> int:
    return child_seed(seed, f"organism {name}") % 2**32


def _cost(tuned: Tuned) -> dict[str, Any]:
    return {
        "n_rows": tuned.n_rows, "n_steps": tuned.n_steps, "cpu_s": tuned.cpu_s, "final_loss": tuned.final_loss,
    }  # fmt: skip


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(path)
