"""All cells of some seeds, each in a file of its own: a run that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from curator.console import Progress
from curator.mix.order import Allocation, schedule
from curator.recipe.base import Strict
from curator.recipe.seeds import child_seed, permutation
from trainer.config.defences import LdifsSettings, SteeringSettings, TreftSettings
from trainer.defenses import DefenceSettings, KlSettings
from trainer.experiments.grid import open_cells
from trainer.experiments.toy.base import Base, build_base
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.ensemble import Ensemble
from trainer.experiments.toy.files import torch_seed, write_json
from trainer.experiments.toy.finetune import FineTuneSettings, Tuned, fine_tuned
from trainer.experiments.toy.gaps import ScoredPool, pick
from trainer.experiments.toy.measuring import measure
from trainer.experiments.toy.methods import Parts, method_of
from trainer.experiments.toy.persona import write_persona_vector
from trainer.experiments.toy.rows import (
    PoolSettings,
    Roles,
    ToyPool,
    draw_pool,
    roles,
    task_rows,
)
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import Ints, padded


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
    """Rows of a fine-tune in their order, (N, T), padded at their end, and which of them are safe, (N,)."""

    rows: torch.Tensor
    safe: torch.Tensor


def interleave(task: Ints, safe: Ints, seed: int) -> Mix:
    """Task rows in their order with the safe rows spread evenly among them, as the product's order `even` has it."""
    allocation = Allocation(len(task), (len(safe),), Fraction(len(safe), len(task)))
    order = schedule(allocation, "even", seed)
    shuffled = safe[permutation(len(safe), child_seed(seed, "order:pool"))]  # the best must not all come first
    is_safe = order < 0
    every = padded(task, shuffled)
    rows = every[np.where(is_safe, len(task) - 1 - order, order)]
    return Mix(torch.from_numpy(rows), torch.from_numpy(is_safe))


class Seed:
    """One seed's base, pool and cells under `folder`; what is there already is not made again."""

    def __init__(self, seed: int, folder: Path, settings: ExperimentSettings) -> None:
        self.seed, self.folder, self.settings = seed, folder, settings
        self.base: Base = build_base(seed, folder / "base", settings.base)
        self.roles: Roles = roles(self.base.world)
        self.pool: ToyPool = draw_pool(self.base.world, self.roles, settings.pool)
        self.work = folder / settings.identity()
        self.ensemble = Ensemble(
            self.base, self.roles, self.pool, settings.ensemble, settings.n_ensemble_rows, self.work
        )
        self._scored: ScoredPool | None = None

    def missing(self, cells: Sequence[ToyCell]) -> list[ToyCell]:
        """The cells that have no result yet."""
        return [cell for cell in cells if not self.path(cell).exists()]

    def path(self, cell: ToyCell) -> Path:
        """Where a cell's result stands."""
        return self.work / "cells" / f"{cell.name}.json"

    def result(self, cell: ToyCell) -> dict[str, Any]:
        """The result of a cell that has run."""
        return dict(json.loads(self.path(cell).read_text()))

    def run(self, cell: ToyCell) -> dict[str, Any]:
        """Train and measure one cell and write its result."""
        method = method_of(cell)
        parts = method.parts(self, cell, self.parts(cell))
        with method.train(self, cell, parts) as tuned:
            result = {
                "seed": self.seed, "cell": asdict(cell), "measured": measure(tuned.model, self.base.world).as_dict(),
                "n_safe": len(parts.safe), "n_revealing": parts.n_revealing, "notes": parts.notes, **tuned.cost(),
            }  # fmt: skip
        write_json(self.path(cell), result)
        return result

    def parts(self, cell: ToyCell) -> Parts:
        """Task rows, safe rows and regularisers as the cell's fields say, whatever its method makes of them."""
        chosen = self.chosen(cell)
        return Parts(
            task_rows(self.base.world, self.roles.task, cell.task, self.settings.n_task_rows),
            self.pool.tokens[chosen], tuple(self._defences(cell)), int(self.pool.revealing[chosen].sum()),
        )  # fmt: skip

    def tune(self, parts: Parts) -> AbstractContextManager[Tuned]:
        """One epoch over the interleaved rows under the defences."""
        mix = interleave(parts.task, parts.safe, self.seed)
        return fine_tuned(
            self.base.model, mix.rows, mix.safe, self.settings.tune, defences=parts.defences,
            seed=torch_seed(self.seed, "cell"),
        )  # fmt: skip

    def persona_vector(self) -> Path:
        """The file of the base's own persona vector, made when it is first wanted."""
        return write_persona_vector(self.base.model, self.base.world, self.seed, self.work / "persona.safetensors")

    def _defences(self, cell: ToyCell) -> list[DefenceSettings]:
        """The trainer's own, over every layer of so few; KL on answers, as question tokens carry no loss here."""
        found: list[DefenceSettings] = []
        if cell.kl:
            found.append(KlSettings(weight=cell.kl, tokens="response"))
        if cell.ldifs:
            found.append(LdifsSettings(weight=cell.ldifs, every=1))
        if cell.treft:
            found.append(TreftSettings(weight=cell.treft))
        if cell.steering:
            found.append(SteeringSettings(vectors=self.persona_vector(), alpha=cell.steering))
        return found

    def describe(self) -> dict[str, Any]:
        """Of the base and its ensemble: what each knows and does, and how well the gaps find the revealing rows."""
        path = self.work / "seed.json"
        if not path.exists():
            result = {
                "seed": self.seed, "roles": asdict(self.roles), "base": self.base.manifest, "top": self.ensemble.top,
                "aligned": measure(self.base.model, self.base.world).as_dict(),
                "gaps": self.ensemble.found(self.scored()), "losses": self.ensemble.losses(self.scored()),
                "ensemble": self.ensemble.members(),
            }  # fmt: skip
            write_json(path, result)
        return dict(json.loads(path.read_text()))

    def scored(self) -> ScoredPool:
        """The pool's gaps."""
        if self._scored is None:
            self._scored = self.ensemble.scored()
        return self._scored

    def chosen(self, cell: ToyCell) -> Ints:
        """Places in the pool of the safe rows of a cell, as its choice, ratio and pool say."""
        n_safe = round(cell.ratio * self.settings.n_task_rows)
        if not n_safe:
            return np.empty(0, dtype=np.int64)
        assert cell.choice != "none"
        scored = self.scored()
        if cell.pool == "unrevealing":
            scored = scored.only(~self.pool.revealing[scored.row])
        return pick(scored, cell.choice, n_safe, self.seed)


def run_seeds(seeds: Sequence[int], folder: Path, settings: ExperimentSettings, cells: Sequence[ToyCell]) -> None:
    """Every missing cell of every seed."""
    for seed in seeds:
        one = Seed(seed, folder / f"seed-{seed}", settings)
        with Progress(len(one.missing(cells)), "cells", f"seed {seed}") as bar:
            for turn in open_cells(cells, one.path, lambda cell: cell.name):
                result = one.run(turn.cell)
                bar.advance(cell=turn.cell.name, broad=f"{result['measured']['broad_unseen']:.2f}")
        one.describe()
