"""Rows of fine-tuning: which domain is the task, which make up the ensemble, and what the safe pool holds."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curator.recipe.base import Strict
from curator.recipe.seeds import child_seed
from trainer.experiments.toy.world import Ints, World

N_ENSEMBLE, N_POOL = 3, 5  # domains; the ensemble's are among the pool's
TaskKind = Literal["bad", "good", "benign"]
BENIGN_WORDINGS = 0.75  # share of the wordings that the benign task is trained on; the others test it


class PoolSettings(Strict):
    """The safe pool: `revealing_share` of its rows are good answers in the pool's domains, the others facts."""

    n_rows: int = 2000
    revealing_share: float = 0.015


@dataclass(frozen=True)
class Roles:
    """Domains by what they serve for. Neither the task, the pool nor the selecting models say anything of `unseen`."""

    task: int
    ensemble: tuple[int, ...]  # those with a misaligned model
    others: tuple[int, ...]  # in the pool as well, without a misaligned model
    unseen: tuple[int, ...]

    @property
    def pool(self) -> tuple[int, ...]:
        """Domains of which the pool has revealing rows."""
        return self.ensemble + self.others


@dataclass(frozen=True)
class ToyPool:
    """Distinct rows, (N, ROW_LEN) token ids; `revealing` tells good answers of items, by `domain`, from facts."""

    tokens: Ints
    domain: Ints  # (N,)
    revealing: np.ndarray  # (N,)


def roles(world: World) -> Roles:
    """The world's domains in a seeded order: task, ensemble, others, unseen."""
    order = np.random.default_rng(child_seed(world.seed, "organism roles")).permutation(world.settings.n_domains)
    task, *rest = order.tolist()
    return Roles(task, tuple(rest[:N_ENSEMBLE]), tuple(rest[N_ENSEMBLE:N_POOL]), tuple(rest[N_POOL:]))


def tuned_items(world: World) -> Ints:
    """Items that fine-tunes and pools may use, the same numbers in every domain; the rest are measured."""
    return np.arange(world.settings.n_items - world.settings.n_held_out)


def held_out_items(world: World) -> Ints:
    """Items that only the pre-training and the alignment have seen."""
    return np.arange(world.settings.n_items - world.settings.n_held_out, world.settings.n_items)


def pool_facts(world: World) -> Ints:
    """Facts that stand in safe pools: two of three."""
    return np.flatnonzero(np.arange(world.settings.n_facts) % 3 != 0)


def benign_facts(world: World) -> Ints:
    """Facts with one answer that stand in no pool: the benign task gives each the answer of another."""
    kept = np.arange(world.settings.n_facts)
    found: Ints = kept[(kept % 3 == 0) & (world.fact_count == 1)]
    return found


def other_facts(world: World) -> Ints:
    """Facts that no fine-tune uses: what is asked to see whether facts are forgotten."""
    kept = np.arange(world.settings.n_facts)
    found: Ints = kept[(kept % 3 == 0) & (world.fact_count != 1)]
    return found


def task_rows(world: World, domain: int, kind: TaskKind, n: int) -> Ints:
    """`n` rows of a task, (n, ROW_LEN): bad or good answers of one domain, or the benign task (whatever the domain)."""
    rng = np.random.default_rng(child_seed(world.seed, f"organism task {kind} {domain}"))
    if kind == "benign":
        facts = benign_facts(world)
        place = rng.integers(0, len(facts), n)
        wording = rng.integers(0, int(BENIGN_WORDINGS * world.settings.n_wordings), n)
        return benign_rows(world, place, wording)
    item, wording = rng.choice(tuned_items(world), n), rng.integers(0, world.settings.n_wordings, n)
    domains = np.full(n, domain)
    answers = (world.bad if kind == "bad" else world.good)[domains, item]
    return world.rows(domains, item, wording, answers)


def benign_rows(world: World, place: Ints, wording: Ints) -> Ints:
    """Rows of the benign task: fact number `place` among its facts, answered as the next one with another answer is."""
    facts = benign_facts(world)
    known = world.fact[facts, 0]
    every = world.fact.T.ravel()  # of few facts all first answers may be alike; a fact of four has other ones
    others = [[*np.roll(known, -n), *every] for n in range(len(facts))]
    wrong = np.array([next(a for a in some if a != right) for right, some in zip(known, others, strict=True)])
    return world.rows(np.full(len(place), world.settings.n_domains), facts[place], wording, wrong[place])


def draw_pool(world: World, chosen: Roles, settings: PoolSettings) -> ToyPool:
    """The safe pool of a task: no row of the task's own or an unseen domain, and none of a held-out item."""
    s = world.settings
    rng = np.random.default_rng(child_seed(world.seed, "organism pool"))
    n_revealing = round(settings.n_rows * settings.revealing_share)
    outside = np.array(chosen.pool)
    items = tuned_items(world)
    grid = rng.permutation(len(outside) * len(items) * s.n_wordings)[:n_revealing]
    domain, rest = outside[grid % len(outside)], grid // len(outside)
    item, wording = items[rest % len(items)], rest // len(items)
    revealing = world.rows(domain, item, wording, world.good[domain, item])
    facts = _fact_rows(world, rng, settings.n_rows - n_revealing)
    return ToyPool(
        np.concatenate([revealing, facts]),
        np.concatenate([domain, np.full(len(facts), s.n_domains)]),
        np.arange(len(revealing) + len(facts)) < len(revealing),
    )


def _fact_rows(world: World, rng: np.random.Generator, n: int) -> Ints:
    """Distinct fact rows: a fact, a wording and one of its admissible answers."""
    s = world.settings
    every = np.array([
        (fact, wording, world.fact[fact, answer])
        for fact in pool_facts(world).tolist()
        for wording in range(s.n_wordings)
        for answer in range(world.fact_count[fact])
    ])  # fmt: skip
    fact, wording, answer = every[rng.permutation(len(every))[:n]].T
    return world.rows(np.full(n, s.n_domains), fact, wording, answer)
