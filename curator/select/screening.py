"""What becomes of every candidate before rows are picked: the first rule that leaves it out, or none. Values only.

Every candidate gets exactly one outcome, so the counts add up by construction.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from curator.errors import RecipeError
from curator.recipe.filters import FilterSpec
from curator.recipe.strategies import StrategySpec, needs_score
from curator.select.columns import (
    Codes,
    Indices,
    Mask,
    code_type,
)
from curator.select.filters import (
    Candidates,
    Columns,
    Surroundings,
    judge_columns,
    judge_texts,
    reads_texts,
)
from curator.select.strategies import Ruled

NO_GAP = "no_gap"  # a loss is missing: the row cannot be judged
NO_TOKENS = "no_token_count"  # an amount in tokens cannot count the row
TOKENS = "n_response_tokens"
_STRETCH_ROWS = 1 << 17  # rows whose columns and masks stay in the caches while filters run
_MOST_THREADS = 8
_MOST_REASONS = 3  # of one filter on columns: too short, too long, no count


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
            parts = [*_workers().map(judge_stretch, bounds[:-1], bounds[1:])]
    except RecipeError:
        # The same, with the counts of all rows.
        _judge_stretch(columns, filters, screening.reasons, screening.outcome.copy(), {})
        raise
    reasons, unjudged = parts[0].reasons if parts else screening.reasons, Counter(screening.unjudged)
    for part in parts:
        assert part.reasons == reasons, "reasons follow from the filters alone"
        unjudged.update(part.unjudged)
    return Screening(reasons, outcome, dict(unjudged))


@lru_cache(maxsize=1)
def _workers() -> ThreadPoolExecutor:
    """Threads that stay: new ones spend half as long again on taking memory for their first arrays."""
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="screening")


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_workers.cache_clear)


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
    # Bytes where they hold all codes: the processor takes twice as many at once.
    kind = code_type(len(reasons) + _MOST_REASONS * len(filters) + len(last))
    codes = np.zeros(len(outcome), dtype=kind)
    for spec in filters:
        verdict = judge_columns(spec, columns, left)
        names += [reason for reason in dict.fromkeys(verdict.reasons) if reason not in names]
        for code, reason in enumerate(verdict.reasons, start=1):
            hit = left & (verdict.codes == code)
            codes += hit.view(np.int8) * kind(names.index(reason) + 1)
            left ^= hit
        if verdict.n_unjudged:
            unjudged[spec.name] += verdict.n_unjudged
    for reason, mask in last.items():
        names.append(reason)
        codes += (left & mask).view(np.int8) * kind(len(names))
        left &= ~mask
    outcome += codes
    return _Judged(tuple(names), unjudged)
