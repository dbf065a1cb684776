"""A seeded sample of a corpus by counter hash: a larger sample with the same seed contains the smaller one."""

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from curator.errors import BadInputError
from curator.seeds import hash_keys

_SEED_NAME = "score-sample"


@dataclass(frozen=True)
class Sample:
    """`n` rows by seed. With `fit` only rows that can be scored count: rows are looked at in hash order, and
    those over the window, without a response token or not renderable are passed over."""

    n: int
    seed: int = 0
    fit: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise BadInputError(f"a sample of {self.n} rows: ask for at least 1")

    def document(self) -> dict[str, Any]:
        """As recorded in scorer.json."""
        return {"n": self.n, "seed": self.seed, "fit": self.fit}


def covers(finished: dict[str, Any] | None, asked: Sample | None) -> bool:
    """Whether a run over `finished` (a recorded sample; None: the whole corpus) holds every row of `asked`."""
    if finished is None:
        return True
    if asked is None or finished["seed"] != asked.seed or finished["fit"] != asked.fit:
        return False
    return bool(finished["n"] >= asked.n)


def choose(ids: Collection[str], sample: Sample, fitting: Callable[[Collection[str]], Iterable[str]]) -> list[str]:
    """The sampled ids in hash order (ties by id); fewer than asked when the corpus has no more.

    `fitting` says which of the ids it is given can be scored; it is asked about ever larger prefixes of the
    hash order, and only when the sample wants that.
    """
    n_looked_at = sample.n * (2 if sample.fit else 1)
    fit: set[str] = set()
    known = 0
    while True:
        candidates = _first(ids, sample.seed, n_looked_at)
        if not sample.fit:
            return candidates
        fit.update(fitting(candidates[known:]))
        known = len(candidates)
        chosen = [item for item in candidates if item in fit][: sample.n]
        if len(chosen) == sample.n or known == len(ids):
            return chosen
        n_looked_at *= 2


def _first(ids: Collection[str], seed: int, n: int) -> list[str]:
    ordered = list(ids)
    keyed = zip(hash_keys(ordered, seed, _SEED_NAME), ordered, strict=True)
    return [item for _, item in heapq.nsmallest(n, keyed)]
