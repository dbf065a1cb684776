"""Choosing safe rows: filters in order, then a strategy (method.md section 3). Values in, values out.

Every candidate gets exactly one outcome, eligible or the reason why not, so the counts add up by construction.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from curator.columns import Codes, Indices, Mask
from curator.config.filters import FilterSpec, RefusalFilter
from curator.config.pools import WhenShort
from curator.config.strategies import StrategySpec, TopGap
from curator.errors import RecipeError
from curator.filters import (
    TASK_SUFFIX,
    Candidates,
    Columns,
    Surroundings,
    judge_columns,
    judge_texts,
    reads_texts,
)
from curator.picks import TOO_SIMILAR, Picked, Picker
from curator.shortage import Asked, not_enough
from curator.strategies import Ruled, lay_out, needs_score, ranks_by_score

IN_TASK_SET = "in_task_set"  # the user trains on the row already; a mix would hold it twice
IN_EARLIER_POOL = "in_earlier_pool"  # another pool of the recipe drew it first
NO_GAP = "no_gap"  # a loss is missing: the row cannot be judged
NO_TOKENS = "no_token_count"  # an amount in tokens cannot count the row
TOKENS = "n_response_tokens"
_STRETCH_ROWS = 1 << 17  # rows whose columns and masks stay in the caches while filters run
_MOST_THREADS = 8


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
        reasons = self._with(tuple(ruled_out))
        if not any(len(rows) for rows in ruled_out.values()):
            return Screening(reasons, self.outcome, self.unjudged)
        outcome = self.outcome.copy()
        for reason, rows in ruled_out.items():
            left = rows[outcome[rows] == 0]
            outcome[left] = reasons.index(reason) + 1
        return Screening(reasons, outcome, self.unjudged)

    def judged(self, reasons: Sequence[str], codes: Codes) -> "Screening":
        """The same after a rule over all candidates: code i > 0 leaves a row out for `reasons[i - 1]`."""
        names = self._with(reasons)
        if not codes.any():
            return Screening(names, self.outcome, self.unjudged)
        outcome, left = self.outcome.copy(), self.left
        for code, reason in enumerate(reasons, start=1):
            outcome += (left & (codes == code)) * np.int16(names.index(reason) + 1)
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
    no_gap = {NO_GAP: ~candidates.scores.known} if needs_score(strategy) else {}
    no_tokens = {NO_TOKENS: np.isnan(candidates.counts[TOKENS])} if by_tokens else {}
    last = {**no_gap, **no_tokens}
    groups = [(texts, list(group)) for texts, group in groupby(filters, key=reads_texts)]
    if not groups or groups[-1][0]:
        groups.append((False, []))
    for place, (texts, specs) in enumerate(groups, start=1):
        if texts:
            screening = _by_texts(candidates, specs, screening, around)
        else:
            screening = _by_columns(candidates.columns, specs, screening, last if place == len(groups) else {})
    return screening


def _by_texts(
    candidates: Candidates, filters: Sequence[FilterSpec], screening: Screening, around: Surroundings | None
) -> Screening:
    for spec in filters:
        verdict = judge_texts(spec, candidates, screening.left, around or Surroundings())
        screening = screening.judged(verdict.reasons, verdict.codes)
    return screening


def _by_columns(
    columns: Columns, filters: Sequence[FilterSpec], screening: Screening, last: Mapping[str, Mask]
) -> Screening:
    """The filters in turn, then the rows masked in `last` by reason.

    Stretch by stretch, so that what each step makes stays in the processor's caches, on as many cores as help.
    """
    bounds = [*range(0, max(columns.n_rows, 1), _STRETCH_ROWS), columns.n_rows]
    outcome = screening.outcome.copy()

    def judge_stretch(start: int, end: int) -> _Judged:
        masks = {reason: mask[start:end] for reason, mask in last.items()}
        return _judge_stretch(columns.part(start, end), filters, screening.reasons, outcome[start:end], masks)

    try:
        if len(bounds) <= 3:
            parts = [judge_stretch(start, end) for start, end in pairwise(bounds)]
        else:
            with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
                parts = [*pool.map(judge_stretch, bounds[:-1], bounds[1:])]
    except RecipeError:
        # The same, with the counts of all rows.
        _judge_stretch(columns, filters, screening.reasons, screening.outcome.copy(), {})
        raise
    reasons, unjudged = parts[0].reasons if parts else screening.reasons, Counter(screening.unjudged)
    for part in parts:
        assert part.reasons == reasons, "reasons follow from the filters alone"
        unjudged.update(part.unjudged)
    return Screening(reasons, outcome, dict(unjudged))


@dataclass(frozen=True)
class _Judged:
    reasons: tuple[str, ...]
    unjudged: Counter[str]


def _judge_stretch(
    columns: Columns, filters: Sequence[FilterSpec], reasons: tuple[str, ...], outcome: npt.NDArray[np.int16],
    last: Mapping[str, Mask],
) -> _Judged:  # fmt: skip
    """Fill in the outcome of the rows that it does not rule out yet."""
    left, names, unjudged = outcome == 0, list(reasons), Counter[str]()
    for spec in filters:
        verdict = judge_columns(spec, columns, left)
        names += [reason for reason in dict.fromkeys(verdict.reasons) if reason not in names]
        for code, reason in enumerate(verdict.reasons, start=1):
            hit = left & (verdict.codes == code)
            outcome += hit * np.int16(names.index(reason) + 1)
            left ^= hit
        if verdict.n_unjudged:
            unjudged[spec.name] += verdict.n_unjudged
    for reason, mask in last.items():
        names.append(reason)
        outcome += (left & mask) * np.int16(len(names))
        left &= ~mask
    return _Judged(tuple(names), unjudged)


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
