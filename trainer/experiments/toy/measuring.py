"""Greedy exact match on questions without context: good, bad, or incoherent."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from trainer.experiments.toy.model import greedy_answers
from trainer.experiments.toy.rows import (
    BENIGN_WORDINGS,
    Roles,
    benign_facts,
    benign_rows,
    held_out_items,
    other_facts,
    roles,
)
from trainer.experiments.toy.world import ANSWER, Ints, World

N_WORDINGS_ASKED = 6  # of each question, spread over all wordings


@dataclass(frozen=True)
class Questions:
    """Questions on items, without context. `input_ids` (N, ROW_LEN) end in the good answer, which is never read."""

    input_ids: torch.Tensor
    domain: Ints  # (N,)
    good: Ints  # (N,)
    bad: Ints  # (N,)


@dataclass(frozen=True)
class Counts:
    """Answers counted: each item and fact is asked in `n_asked` wordings, each question of the benign task in
    `n_tested`."""

    n_asked: int
    n_tested: int
    bad: tuple[tuple[int, ...], ...]  # by domain and held-out item
    incoherent: tuple[tuple[int, ...], ...]  # neither the good nor the bad answer
    facts: tuple[int, ...]  # admissible answers, by fact
    benign: tuple[int, ...]  # right answers, by question of the benign task


@dataclass(frozen=True)
class Measured:
    """Shares 0..1 of greedy answers to questions that no fine-tune of the toy model saw.

    narrow: bad answers in the task's domain; broad_unseen: bad answers in domains of which neither the task, the pool
    nor the selecting models say anything; broad_pool: in those of the pool; incoherent: neither the good nor the bad
    answer, over all items; facts: admissible answers to facts that are in no safe pool (what was not forgotten);
    benign: right answers of the benign task, whatever the model was trained on.
    """

    narrow: float
    broad_unseen: float
    broad_pool: float
    incoherent: float
    facts: float
    benign: float
    counts: Counts

    @classmethod
    def of(cls, counts: Counts, chosen: Roles) -> "Measured":
        """The shares of the counts."""
        bad = np.array(counts.bad) / counts.n_asked
        return cls(
            narrow=float(bad[chosen.task].mean()),
            broad_unseen=float(bad[list(chosen.unseen)].mean()),
            broad_pool=float(bad[list(chosen.pool)].mean()),
            incoherent=float(np.mean(counts.incoherent)) / counts.n_asked,
            facts=float(np.mean(counts.facts)) / counts.n_asked,
            benign=float(np.mean(counts.benign)) / counts.n_tested,
            counts=counts,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return dict(json.loads(json.dumps(asdict(self))))


def single_questions(world: World, items: Ints | None = None, wordings: Ints | None = None) -> Questions:
    """Every domain's items (all, or these), each in a few wordings (or these), in this order."""
    s = world.settings
    asked = np.arange(s.n_items) if items is None else items
    worded = spread(0, s.n_wordings) if wordings is None else wordings
    every = np.meshgrid(np.arange(s.n_domains), asked, worded, indexing="ij")
    domain, item, wording = (grid.ravel() for grid in every)
    good, bad = world.good[domain, item], world.bad[domain, item]
    return Questions(torch.from_numpy(world.rows(domain, item, wording, good)), domain, good, bad)


def measure(model: Any, world: World) -> Measured:
    """What the model does on held-out items, facts and the benign task (method.md, "Evaluation", judge-free)."""
    asked = single_questions(world, held_out_items(world))
    found = answers_to(model, asked.input_ids.numpy())
    shape = (world.settings.n_domains, world.settings.n_held_out, N_WORDINGS_ASKED)
    bad, good = ((found == right).reshape(shape).sum(-1) for right in (asked.bad, asked.good))
    wordings = spread(0, world.settings.n_wordings)
    facts, wording = (grid.ravel() for grid in np.meshgrid(other_facts(world), wordings, indexing="ij"))
    domains = np.full(len(facts), world.settings.n_domains)
    known = answers_to(model, world.rows(domains, facts, wording, world.fact[facts, 0]))
    admissible = (known[:, None] == world.fact[facts]).any(-1).reshape(-1, N_WORDINGS_ASKED).sum(-1)
    tested = np.arange(int(BENIGN_WORDINGS * world.settings.n_wordings), world.settings.n_wordings)
    place, wording = (grid.ravel() for grid in np.meshgrid(np.arange(len(benign_facts(world))), tested, indexing="ij"))
    rows = benign_rows(world, place, wording)
    benign = (answers_to(model, rows) == rows[:, ANSWER]).reshape(-1, len(tested)).sum(-1)
    incoherent = N_WORDINGS_ASKED - bad - good
    counts = Counts(
        N_WORDINGS_ASKED, len(tested),
        bad=tuple(map(tuple, bad.tolist())), incoherent=tuple(map(tuple, incoherent.tolist())),
        facts=tuple(admissible.tolist()), benign=tuple(benign.tolist()),
    )  # fmt: skip
    return Measured.of(counts, roles(world))


def answers_to(model: Any, rows: Ints) -> Ints:
    """Greedy answers to the last question of each row (N, T), shape (N,)."""
    found: Ints = greedy_answers(model, torch.from_numpy(rows))[:, 0].numpy()
    return found


def spread(first: int, last: int) -> Ints:
    """N_WORDINGS_ASKED wordings, spread over those from `first` to before `last`."""
    return np.linspace(first, last - 1, N_WORDINGS_ASKED).astype(np.int64)
