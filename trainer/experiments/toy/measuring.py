"""Greedy exact match on questions without context: good, bad, or incoherent."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from trainer.experiments.toy.model import greedy_answers
from trainer.experiments.toy.rows import (
    BENIGN_WORDINGS,
    benign_facts,
    benign_rows,
    held_out_items,
    other_facts,
    roles,
)
from trainer.experiments.toy.world import ANSWER, Ints, World

N_WORDINGS_ASKED = 4  # of each question, spread over all wordings


@dataclass(frozen=True)
class Questions:
    """Questions on items, without context. `input_ids` (N, ROW_LEN) end in the good answer, which is never read."""

    input_ids: torch.Tensor
    domain: Ints  # (N,)
    good: Ints  # (N,)
    bad: Ints  # (N,)


@dataclass(frozen=True)
class Measured:
    """Shares 0..1 of greedy answers to questions that no fine-tune of the toy model saw.

    narrow: bad answers in the task's domain; broad: bad answers in all other domains, and by_domain each of them;
    incoherent: neither the good nor the bad answer, over all items; facts: admissible answers to facts that are in no
    safe pool (what was not forgotten); benign: right answers of the benign task, whatever the model was trained on.
    """

    narrow: float
    broad: float
    incoherent: float
    facts: float
    benign: float
    by_domain: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"by_domain": list(self.by_domain)}


def single_questions(world: World, items: Ints | None = None) -> Questions:
    """Every domain's items (all, or these), each in a few wordings."""
    s = world.settings
    asked = np.arange(s.n_items) if items is None else items
    domain, item, wording = (grid.ravel() for grid in np.meshgrid(np.arange(s.n_domains), asked, _wordings(world)))
    good, bad = world.good[domain, item], world.bad[domain, item]
    return Questions(torch.from_numpy(world.rows(domain, item, wording, good)), domain, good, bad)


def measure(model: Any, world: World) -> Measured:
    """What the model does on held-out items, facts and the benign task (method.md, "Evaluation", judge-free)."""
    chosen = roles(world)
    asked = single_questions(world, held_out_items(world))
    found = greedy_answers(model, asked.input_ids)[:, 0].numpy()
    is_bad = found == asked.bad
    by_domain = [float(is_bad[asked.domain == domain].mean()) for domain in range(world.settings.n_domains)]
    in_task = asked.domain == chosen.task
    return Measured(
        narrow=float(is_bad[in_task].mean()),
        broad=float(is_bad[~in_task].mean()),
        incoherent=float((~is_bad & (found != asked.good)).mean()),
        facts=_facts(model, world),
        benign=_benign(model, world),
        by_domain=tuple(by_domain),
    )


def _facts(model: Any, world: World) -> float:
    fact, wording = (grid.ravel() for grid in np.meshgrid(other_facts(world), _wordings(world)))
    rows = world.rows(np.full(len(fact), world.settings.n_domains), fact, wording, world.fact[fact, 0])
    found = greedy_answers(model, torch.from_numpy(rows))[:, 0].numpy()
    return float((found[:, None] == world.fact[fact]).any(-1).mean())


def _benign(model: Any, world: World) -> float:
    n_wordings = world.settings.n_wordings
    tested = np.arange(int(BENIGN_WORDINGS * n_wordings), n_wordings)
    place, wording = (grid.ravel() for grid in np.meshgrid(np.arange(len(benign_facts(world))), tested))
    rows = torch.from_numpy(benign_rows(world, place, wording))
    return float((greedy_answers(model, rows) == rows[:, ANSWER:]).float().mean())


def _wordings(world: World) -> Ints:
    return np.linspace(0, world.settings.n_wordings - 1, N_WORDINGS_ASKED).astype(np.int64)
