"""Choosing safe rows: filters in order, then a strategy (method.md section 3). Values in, values out.

Every candidate gets exactly one outcome, eligible or the reason why not, so the counts add up by construction.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from curator.columns import Codes, Indices, Mask
from curator.config.filters import FilterSpec, RefusalFilter
from curator.config.pools import WhenShort
from curator.config.strategies import StrategySpec, TopGap
from curator.filters import TASK_SUFFIX, Candidates, Surroundings, judge
from curator.picks import TOO_SIMILAR, Picked, Picker
from curator.shortage import Asked, not_enough
from curator.strategies import Ruled, lay_out, needs_score, ranks_by_score

IN_TASK_SET = "in_task_set"  # the user trains on the row already; a mix would hold it twice
IN_EARLIER_POOL = "in_earlier_pool"  # another pool of the recipe drew it first
NO_GAP = "no_gap"  # a loss is missing: the row cannot be judged
NO_TOKENS = "no_token_count"  # an amount in tokens cannot count the row
TOKENS = "n_response_tokens"


@dataclass(frozen=True)
class Screening:
    """What the filters made of the candidates.

    `outcome` has shape (n_candidates,): 0 is eligible, i > 0 stands for `reasons[i - 1]`. `unjudged` counts, by
    filter, rows that passed because they lack the label that it reads.
    """

    reasons: tuple[str, ...]
    outcome: npt.NDArray[np.int16]
    unjudged: Mapping[str, int] = field(default_factory=dict)

    @property
    def eligible(self) -> Indices:
        """Indices of the candidates that may be drawn, ascending."""
        return np.flatnonzero(self.left)

    @property
    def left(self) -> Mask:
        """Which candidates may be drawn, shape (n_candidates,)."""
        left: Mask = self.outcome == 0
        return left

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped for each reason, in the order in which the reasons were tried."""
        counts = (np.count_nonzero(self.outcome == code) for code in range(1, len(self.reasons) + 1))
        return dict(zip(self.reasons, map(int, counts), strict=True))

    def reason_of(self, candidate: int) -> str | None:
        """Why a candidate cannot be drawn; None when it can."""
        code = int(self.outcome[candidate])
        return self.reasons[code - 1] if code else None

    def also(self, ruled_out: Ruled) -> "Screening":
        """The same with further rows left out, each for the first reason that it was given."""
        reasons, outcome = self._with(tuple(ruled_out)), self.outcome.copy()
        for reason, rows in ruled_out.items():
            left = rows[outcome[rows] == 0]
            outcome[left] = reasons.index(reason) + 1
        return Screening(reasons, outcome, self.unjudged)

    def judged(self, reasons: Sequence[str], codes: Codes) -> "Screening":
        """The same after a rule over all candidates: code i > 0 leaves a row out for `reasons[i - 1]`."""
        names, outcome, left = self._with(reasons), self.outcome, self.left
        for code, reason in enumerate(reasons, start=1):
            outcome = np.where(left & (codes == code), np.int16(names.index(reason) + 1), outcome)
        return Screening(names, outcome, self.unjudged)

    def _with(self, reasons: Sequence[str]) -> tuple[str, ...]:
        return (*self.reasons, *(reason for reason in dict.fromkeys(reasons) if reason not in self.reasons))


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


def screen(
    candidates: Candidates,
    filters: Sequence[FilterSpec],
    strategy: StrategySpec,
    exclude: Mapping[str, Collection[str]] | None = None,
    around: Surroundings | None = None,
    by_tokens: bool = False,
) -> Screening:
    """The outcome of every candidate, which is the first reason that applies or none.

    First `exclude` (reason: ids), then the filters in order, then whether a strategy that ranks can judge the row,
    and whether an amount in tokens can count it. Raises RecipeError when rows lack a label that a filter reads.
    """
    screening = Screening((), np.zeros(len(candidates), dtype=np.int16))
    for reason, ids in (exclude or {}).items():
        screening = screening.also({reason: candidates.ids.held(ids)})
    unjudged: dict[str, int] = {}
    for spec in filters:
        verdict = judge(spec, candidates, screening.left, around or Surroundings())
        screening = screening.judged(verdict.reasons, verdict.codes)
        if verdict.n_unjudged:
            unjudged[spec.name] = unjudged.get(spec.name, 0) + verdict.n_unjudged
    if needs_score(strategy):
        screening = screening.judged((NO_GAP,), (~candidates.scores.known).view(np.int8))
    if by_tokens:
        screening = screening.judged((NO_TOKENS,), np.isnan(candidates.counts[TOKENS]).view(np.int8))
    return Screening(screening.reasons, screening.outcome, unjudged)


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
