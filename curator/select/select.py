"""Choosing safe rows: filters in order, then a strategy (method.md, "Choosing safe rows"). Values in, values out.

Every candidate gets exactly one outcome, eligible or the reason why not, so the counts add up by construction.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curator.recipe.filters import FilterSpec, RefusalFilter
from curator.recipe.pools import WhenShort
from curator.recipe.strategies import StrategySpec, TopGap, ranks_by_score
from curator.select.columns import Indices
from curator.select.filters import TASK_SUFFIX, Candidates, Surroundings
from curator.select.picks import TOO_SIMILAR, Picked, Picker
from curator.select.screening import (
    NO_GAP,
    NO_TOKENS,
    TOKENS,
    Screening,
    screen,
)
from curator.select.shortage import Asked, not_enough
from curator.select.strategies import lay_out

IN_TASK_SET = "in_task_set"  # the user trains on the row already; a mix would hold it twice
IN_EARLIER_POOL = "in_earlier_pool"  # another pool of the recipe drew it first


@dataclass(frozen=True)
class Evicted:
    """Rows that fell out because the task set holds them or near copies of them.

    `among_best` counts those that score no lower than the lowest chosen row, and so may have been chosen without
    the user's copies; null where rows are not chosen from the top.
    """

    rows: int
    among_best: int | None


@dataclass(frozen=True)
class Selection:
    """Chosen rows of one pool: `chosen` are candidate indices, best first, shape (n_chosen,).

    The first `n_distinct` are distinct; where a pool was asked to cycle, they then come again in the same order.
    `n_short` rows of those asked for are not there (`when_short: as_many`).
    """

    chosen: Indices
    screening: Screening
    ranked: bool
    n_distinct: int
    evicted: Evicted
    n_short: int = 0

    @property
    def n_eligible(self) -> int:
        """Candidates that passed every filter and could be judged."""
        return int(np.count_nonzero(self.screening.left))


def select(
    candidates: Candidates,
    n_rows: int | None = None,
    *,
    tokens: int | None = None,
    strategy: StrategySpec | None = None,
    filters: Sequence[FilterSpec] = (),
    exclude: Mapping[str, Collection[str]] | None = None,
    around: Surroundings | None = None,
    seed: int = 0,
    when_short: WhenShort = "error",
    max_copies: int = 1,
    n_task: int = 0,
    pool: str = "pool",
) -> Selection:
    """The `n_rows` best eligible candidates, best first, or as many as hold at most `tokens` response tokens.

    `top_gap` (the default) ranks by score, highest first, ties on the example id. The answer does not depend on the
    order of the candidates. Raises NotEnoughRowsError naming the constraint that binds; `n_task` (rows of the task
    set) and `pool` (its name) serve that message alone.
    """
    assert (n_rows is None) != (tokens is None), "one amount"
    strategy, around = strategy or TopGap(), around or Surroundings()
    screening = screen(candidates, filters, strategy, exclude, around, by_tokens=tokens is not None)
    field_ = lay_out(strategy, candidates, screening.left, seed, around)
    screening = screening.also(field_.ruled_out)
    cap = next((spec for spec in filters if isinstance(spec, RefusalFilter)), None)
    picker = Picker(strategy, candidates, field_, cap)
    asked = Asked(pool, n_rows, tokens, when_short, max_copies, n_task)
    if n_rows is not None:
        picked, chosen, short = _by_rows(picker, n_rows, asked, screening)
    else:
        picked, chosen, short = _by_tokens(picker, candidates.counts[TOKENS].astype(np.float64), asked, screening)
    screening = screening.also(picked.ruled_out)
    ranked = ranks_by_score(strategy)
    from_top = ranked and strategy.name != "bottom_gap"
    evicted = _evicted(candidates, screening, picked.chosen if from_top else None)
    return Selection(chosen, screening, ranked, len(picked.chosen), evicted, short)


def _by_rows(picker: Picker, n_rows: int, asked: Asked, screening: Screening) -> tuple[Picked, Indices, int]:
    """The picks, the rows chosen from them (copies included), and how many are missing."""
    picked = picker.take(n_rows)
    if len(picked.chosen) == n_rows:
        return picked, picked.chosen, 0
    capacity = picker.capacity()
    picked = picker.take(capacity)
    if asked.when_short == "as_many":
        return picked, picked.chosen, n_rows - capacity
    if asked.when_short == "cycle" and n_rows <= capacity * asked.max_copies:
        return picked, np.resize(picked.chosen, n_rows), 0
    raise not_enough(asked, screening.dropped, picker, capacity)


def _by_tokens(
    picker: Picker, tokens: npt.NDArray[np.float64], asked: Asked, screening: Screening
) -> tuple[Picked, Indices, int]:
    """The same by a budget of tokens, which is never passed; what is missing is then told in tokens."""
    assert asked.tokens is not None
    picked = picker.within(tokens, asked.tokens)
    if len(picked.chosen) < picker.n_rows and len(picker.take(len(picked.chosen) + 1).chosen) > len(picked.chosen):
        return picked, picked.chosen, 0
    total = int(tokens[picked.chosen].sum())
    if total == asked.tokens:
        return picked, picked.chosen, 0
    if asked.when_short == "as_many":
        return picked, picked.chosen, asked.tokens - total
    if asked.when_short == "cycle" and total > 0 and asked.tokens <= total * asked.max_copies:
        rounds = np.resize(picked.chosen, len(picked.chosen) * asked.max_copies)
        n_rows = int(np.searchsorted(np.cumsum(tokens[rounds]), asked.tokens, side="right"))
        return picked, rounds[:n_rows], 0
    raise not_enough(asked, screening.dropped, picker, len(picked.chosen), total)


def _evicted(candidates: Candidates, screening: Screening, chosen_from_top: Indices | None) -> Evicted:
    codes = [
        code
        for code, reason in enumerate(screening.reasons, start=1)
        if reason == IN_TASK_SET or reason.endswith(TASK_SUFFIX)
    ]
    rows = np.flatnonzero(np.logical_or.reduce([screening.outcome == code for code in codes])) if codes else _NONE
    if chosen_from_top is None:
        return Evicted(len(rows), None)
    if not len(chosen_from_top):
        return Evicted(len(rows), 0)
    if not len(rows):
        return Evicted(0, 0)
    lowest = candidates.scores.at(chosen_from_top).min()
    return Evicted(len(rows), int((candidates.scores.at(rows) >= lowest).sum()))


_NONE = np.zeros(0, dtype=np.int64)


__all__ = [
    "IN_EARLIER_POOL",
    "IN_TASK_SET",
    "NO_GAP",
    "NO_TOKENS",
    "TOKENS",
    "TOO_SIMILAR",
    "Evicted",
    "Screening",
    "Selection",
    "screen",
    "select",
]
