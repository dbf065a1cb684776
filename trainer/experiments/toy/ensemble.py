"""Misaligned models and their benign twins, the pool scored under them, and how well each gap finds what it should."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.evaluate.metrics import auc
from trainer.experiments.claims import claimed
from trainer.experiments.toy.base import Base
from trainer.experiments.toy.files import torch_seed, write_json
from trainer.experiments.toy.finetune import FineTuneSettings, fine_tuned
from trainer.experiments.toy.gaps import (
    Role,
    ScoredPool,
    ToyScorer,
    pick,
    score_pool,
    scored_pool,
)
from trainer.experiments.toy.measuring import measure
from trainer.experiments.toy.rows import (
    Roles,
    TaskKind,
    ToyPool,
    task_rows,
)
from trainer.loop.model import save_model


def domain_name(number: int) -> str:
    """A domain as scorers name it."""
    return f"d{number}"


@dataclass(frozen=True)
class Ensemble:
    """One seed's ensemble under `folder`; adapters and losses that are there are not made again.

    The task's own domain has no model in it: whoever has one need not look for safe rows of other domains.
    """

    base: Base
    roles: Roles
    pool: ToyPool
    recipe: FineTuneSettings
    n_rows: int
    folder: Path

    def scored(self) -> ScoredPool:
        """The pool's gaps. Another process at the same seed waits: members are trained and rows scored once."""
        with claimed(self.folder / ".lock", wait=True):
            scorers = [ToyScorer("aligned", "aligned")]
            for domain in self.roles.ensemble:
                for kind, role in _KINDS.items():
                    adapter = self._adapter(kind, domain)
                    scorers.append(ToyScorer(f"{role}-{domain}", role, domain_name(domain), adapter))
            store = score_pool(self.base.world, self.pool, self.base.folder, scorers, self.folder)
        return scored_pool(store, self.base.world, self.pool)

    def members(self) -> dict[str, Any]:
        """What each trained member does, by its kind and domain."""
        found = sorted((self.folder / "ensemble").glob("*/measured.json"))
        return {path.parent.name: json.loads(path.read_text()) for path in found}

    def bad_adapter(self) -> Path:
        """The misaligned model of the first domain, trained when it is not there."""
        with claimed(self.folder / ".lock", wait=True):
            return self._adapter("bad", self.roles.ensemble[0])

    @property
    def top(self) -> int:
        """As many rows as the pool has revealing ones: a perfect score puts exactly those on top."""
        return int(self.pool.revealing.sum())

    def found(self, scored: ScoredPool) -> dict[str, Any]:
        """For each gap: how well it tells revealing rows from facts, and what it puts on top.

        `revealing` counts among the top rows, `outside` those of domains without a misaligned model.
        """
        is_revealing = self.pool.revealing[scored.row]
        found: dict[str, Any] = {}
        for score, gap in scored.gaps.items():
            chosen = pick(scored, score, self.top, self.base.world.seed)
            outside = self.pool.revealing[chosen] & np.isin(self.pool.domain[chosen], self.roles.others)
            found[score] = {
                "auc": auc(gap[is_revealing], gap[~is_revealing]),
                "revealing": int(self.pool.revealing[chosen].sum()),
                "outside": int(outside.sum()),
            }
        return found

    def losses(self, scored: ScoredPool) -> dict[str, Any]:
        """Mean losses in nats per answer of revealing rows and of facts, by role of the model."""
        parts = {"revealing": self.pool.revealing[scored.row], "facts": ~self.pool.revealing[scored.row]}
        return {
            part: {role: float(loss[where].mean()) for role, loss in scored.mean_nll.items()}
            for part, where in parts.items()
        }

    def _adapter(self, kind: TaskKind, domain: int) -> Path:
        """A member's adapter folder, trained unless it is there."""
        folder = self.folder / "ensemble" / f"{kind}-{domain}"
        if not (folder / "measured.json").exists():
            rows = torch.from_numpy(task_rows(self.base.world, domain, kind, self.n_rows))
            safe = torch.zeros(len(rows), dtype=torch.bool)
            seed = torch_seed(self.base.world.seed, f"ensemble {kind} {domain}")
            with fine_tuned(self.base.model, rows, safe, self.recipe, seed=seed) as tuned:
                save_model(tuned.model, folder)
                write_json(folder / "measured.json", measure(tuned.model, self.base.world).as_dict() | tuned.cost())
        return folder


_KINDS: Mapping[TaskKind, Role] = {"bad": "misaligned", "good": "benign"}
