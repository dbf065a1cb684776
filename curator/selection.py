"""Choosing safe rows: filters in order, then a strategy (method.md section 3). Values in, values out.

Every candidate gets exactly one outcome, eligible or the reason why not, so the counts add up by construction.
A strategy is one entry in `STRATEGIES`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curator.config import FilterSpec, StrategyName
from curator.errors import NotEnoughRowsError
from curator.filters import Candidates, filter_label, keep_mask
from curator.seeds import hash_keys

IN_TASK_SET = "in_task_set"  # the user trains on the row already; a mix would hold it twice
IN_EARLIER_POOL = "in_earlier_pool"  # another pool of the recipe drew it first
NO_GAP = "no_gap"  # a loss is missing: the row cannot be judged

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Strategy:
    """How rows are picked: `order` puts eligible candidates best first, given the seed.

    `needs_score`: rows without a gap cannot be judged and are left out, counted.
    """

    order: Callable[[Candidates, Indices, int], Indices]
    needs_score: bool


@dataclass(frozen=True)
class Screening:
    """What the filters made of the candidates.

    `outcome` has shape (n_candidates,): 0 is eligible, i > 0 stands for `reasons[i - 1]`.
    """

    reasons: tuple[str, ...]
    outcome: npt.NDArray[np.int16]

    @property
    def eligible(self) -> Indices:
        """Indices of the candidates that may be drawn, ascending."""
        return np.flatnonzero(self.outcome == 0)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped for each reason, in the order in which the reasons were tried."""
        counts = np.bincount(self.outcome, minlength=len(self.reasons) + 1)[1:]
        return dict(zip(self.reasons, counts.tolist(), strict=True))


@dataclass(frozen=True)
class Selection:
    """Chosen rows of one pool: `chosen` are candidate indices, best first, shape (n_chosen,)."""

    chosen: Indices
    screening: Screening
    ranked: bool

    @property
    def n_eligible(self) -> int:
        """Candidates that passed every filter and could be judged."""
        return len(self.screening.eligible)


def _random_order(candidates: Candidates, eligible: Indices, seed: int) -> Indices:
    ids = [candidates.ids[i] for i in eligible]
    keys = hash_keys(ids, seed, "random")
    order = sorted(range(len(ids)), key=lambda i: (keys[i], ids[i]))
    return eligible[np.array(order, dtype=np.int64)]


def _top_gap_order(candidates: Candidates, eligible: Indices, seed: int) -> Indices:
    ids = np.array([candidates.ids[i] for i in eligible], dtype=np.str_)
    order: Indices = np.lexsort((ids, -candidates.score[eligible]))
    return eligible[order]


STRATEGIES: Mapping[StrategyName, Strategy] = {
    "random": Strategy(_random_order, needs_score=False),
    "top_gap": Strategy(_top_gap_order, needs_score=True),
}


def _absent(ids: Sequence[str], excluded: Collection[str]) -> npt.NDArray[np.bool_]:
    return np.fromiter((item not in excluded for item in ids), dtype=np.bool_, count=len(ids))


def screen(
    candidates: Candidates,
    filters: Sequence[FilterSpec],
    strategy: StrategyName,
    exclude: Mapping[str, Collection[str]] | None = None,
) -> Screening:
    """The outcome of every candidate, which is the first reason that applies or none.

    First `exclude` (reason: ids), then the filters in order, then whether a strategy that ranks can judge the row.
    """
    kept = [(reason, _absent(candidates.ids, ids)) for reason, ids in (exclude or {}).items()]
    kept += [(filter_label(spec), keep_mask(spec, candidates)) for spec in filters]
    if STRATEGIES[strategy].needs_score:
        kept.append((NO_GAP, ~np.isnan(candidates.score)))
    outcome = np.zeros(len(candidates.ids), dtype=np.int16)
    for code, (_, stays) in enumerate(kept, start=1):
        outcome[(outcome == 0) & ~stays] = code
    return Screening(tuple(name for name, _ in kept), outcome)


def select(
    candidates: Candidates,
    n_rows: int,
    *,
    strategy: StrategyName,
    filters: Sequence[FilterSpec] = (),
    exclude: Mapping[str, Collection[str]] | None = None,
    seed: int = 0,
    n_task: int = 0,
    pool: str = "pool",
) -> Selection:
    """The `n_rows` best eligible candidates, best first.

    `top_gap` ranks by score, highest first, ties on the example id; `random` by a hash of seed and id. The answer
    does not depend on the order of the candidates.
    Raises NotEnoughRowsError naming the constraint that binds; `n_task` (rows of the task set) and `pool` (its
    name) serve that message alone.
    """
    screening = screen(candidates, filters, strategy, exclude)
    eligible = screening.eligible
    if n_rows > len(eligible):
        raise _not_enough(n_rows, screening, n_task, pool)
    order = STRATEGIES[strategy].order(candidates, eligible, seed) if n_rows else eligible[:0]
    return Selection(order[:n_rows], screening, STRATEGIES[strategy].needs_score)


def _not_enough(n_rows: int, screening: Screening, n_task: int, pool: str) -> NotEnoughRowsError:
    n_candidates, n_eligible = len(screening.outcome), len(screening.eligible)
    dropped = {reason: count for reason, count in screening.dropped.items() if count}
    binding = max(dropped, key=lambda reason: dropped[reason]) if n_candidates >= n_rows else "pool_size"
    detail: dict[str, object] = {
        "pool": pool, "asked": n_rows, "candidates": n_candidates, "eligible": n_eligible, "dropped": dropped,
        "binding": binding, "max_rows": n_eligible, "more_rows_needed": n_rows - n_eligible,
    }  # fmt: skip
    ratio = ""
    if n_task:
        # Rounded down, so that the number given really fits.
        detail["max_interleave_ratio"] = int(n_eligible / n_task * 1e6) / 1e6
        ratio = f" (interleave_ratio <= {detail['max_interleave_ratio']:g})"
    losses = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items()) or "nothing was filtered"
    return NotEnoughRowsError(
        f"{n_rows:,} safe rows were asked of pool {pool!r}, {n_eligible:,} of its {n_candidates:,} rows can be drawn "
        f"({losses}); what binds is {binding}. Ask for at most {n_eligible:,} rows{ratio}, "
        f"or bring {n_rows - n_eligible:,} more rows: {_REMEDIES.get(binding, 'loosen that filter')}.",
        details=[detail],
    )


_REMEDIES = {
    "pool_size": "ingest more into the corpus",
    NO_GAP: "score more of the corpus, under every model of the gap",
    IN_TASK_SET: "ingest rows that the task set lacks",
    IN_EARLIER_POOL: "give the pools corpora of their own",
}
