"""Picking n rows from a ranked field under constraints: quotas, a cap on refusals, a bound on likeness."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice

import numpy as np

from curator.recipe.filters import RefusalFilter
from curator.recipe.fractions import exact, largest_remainder
from curator.recipe.strategies import Diverse, StrategySpec, Stratified
from curator.select.columns import (
    Codes,
    Holding,
    Indices,
    Numbers,
)
from curator.select.dedup import shingles
from curator.select.filters import Candidates, filter_label, texts_of
from curator.select.ngrams import Hashes
from curator.select.strategies import Field, Ruled

TOO_SIMILAR = "too_similar"
_FIRST_TAKE = 64
_WALK_ROWS = 512  # rows whose texts are compared at a time


@dataclass(frozen=True)
class Picked:
    """Rows picked, best first, and rows passed over on the way, by reason."""

    chosen: Indices
    ruled_out: Ruled = field(default_factory=dict)


class Picker:
    """Picks from one field. `take(n)` may give fewer rows than asked; then no more fit."""

    def __init__(
        self, spec: StrategySpec, candidates: Candidates, rows: Field, cap: RefusalFilter | None = None
    ) -> None:
        self._spec, self._candidates, self._field = spec, candidates, rows
        self._cap = cap if cap is not None and cap.max_share > 0 else None
        self._strata = _strata(spec, rows)

    @property
    def n_rows(self) -> int:
        """Rows in the field."""
        return self._field.n_rows

    @property
    def takes_prefixes(self) -> bool:
        """Whether the first k rows of a larger take are the take of k."""
        return self._cap is None and self._field.strata is None

    def take(self, n: int) -> Picked:
        """The best `n` rows that the constraints allow together."""
        if self._cap is not None or isinstance(self._spec, Diverse):
            return self._walk(n)
        if self._field.strata is None:
            return Picked(self._field.best(n))
        chosen = np.zeros(len(self._field.left), dtype=np.bool_)
        for stratum, quota in zip(self._strata, self.quotas(n).values(), strict=True):
            chosen[self._field.best_of(Holding(self._field.left, self._codes, stratum.code), quota)] = True
        return Picked(self._field.best_of(chosen, n))

    def capacity(self) -> int:
        """The largest n for which `take(n)` gives n rows."""
        high = len(self.take(self.n_rows).chosen)
        if self.takes_prefixes or len(self.take(high).chosen) == high:
            return high
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(self.take(middle).chosen) == middle else (low, middle)
        return low

    def within(self, weights: Numbers, budget: float) -> Picked:
        """The largest take whose weights (by candidate) do not add up to more than `budget`."""
        n = _FIRST_TAKE
        while len(picked := self.take(n).chosen) == n and weights[picked].sum() <= budget and n < self.n_rows:
            n *= 2
        if self.takes_prefixes:
            return self.take(int(np.searchsorted(np.cumsum(weights[picked]), budget, side="right")))
        low, high = 0, n + 1
        while high - low > 1:
            middle = (low + high) // 2
            picked = self.take(middle).chosen
            fits = len(picked) == middle and weights[picked].sum() <= budget
            low, high = (middle, high) if fits else (low, middle)
        return self.take(low)

    def quotas(self, n: int) -> dict[str, int]:
        """How many of `n` rows each value of the column gets: largest remainder, ties to the first name."""
        assert isinstance(self._spec, Stratified)
        if isinstance(self._spec.quotas, dict):
            weights = [exact(self._spec.quotas[stratum.value]) for stratum in self._strata]
        elif self._spec.quotas == "equal":
            weights = [Fraction(1)] * len(self._strata)
        else:
            weights = [Fraction(stratum.n_rows) for stratum in self._strata]
        total = sum(weights, Fraction())
        shares = [weight * n / total for weight in weights]
        values = [stratum.value for stratum in self._strata]
        return dict(zip(values, largest_remainder(shares, n if weights else 0), strict=True))

    @property
    def _codes(self) -> Codes:
        assert self._field.strata is not None
        return self._field.strata.codes

    def short_of(self, n: int) -> str | None:
        """What keeps `take(n)` from giving n rows, in words for a message; None where it is the field's size."""
        if self._field.strata is not None:
            for stratum, (value, quota) in zip(self._strata, self.quotas(n).items(), strict=True):
                if quota > stratum.n_rows and isinstance(self._spec, Stratified):
                    told = f"{quota:,} rows asked, {stratum.n_rows:,} there"
                    return f"the quota of {self._spec.by} {value!r} ({told})"
        if n > self.n_rows:
            return None
        if isinstance(self._spec, Diverse):
            return f"{TOO_SIMILAR} (max_similarity {self._spec.max_similarity:g})"
        return None if self._cap is None else filter_label(self._cap)

    def _walk(self, n: int) -> Picked:
        """Row by row from the best: each is taken unless a constraint speaks against it."""
        quota = self._quota_by_code(n)
        refusals_left = -1 if self._cap is None else int(exact(self._cap.max_share) * n)
        apart = _Apart(self._spec.max_similarity) if isinstance(self._spec, Diverse) else None
        chosen: list[int] = []
        passed: defaultdict[str, list[int]] = defaultdict(list)
        refuses = None if self._cap is None else self._candidates.refuses(self._cap.rule)
        for row, grams in self._with_grams(apart is not None):
            if len(chosen) == n:
                break
            if quota is not None and not quota.get(int(self._codes[row])):
                continue
            counts_as_refusal = refuses is not None and bool(refuses[row])
            if self._cap is not None and counts_as_refusal and not refusals_left:
                passed[filter_label(self._cap)].append(row)
                continue
            if apart is not None and not apart.admit(grams):
                passed[TOO_SIMILAR].append(row)
                continue
            refusals_left -= counts_as_refusal
            if quota is not None:
                quota[int(self._codes[row])] -= 1
            chosen.append(row)
        ruled = {reason: np.array(rows, np.int64) for reason, rows in passed.items()}
        return Picked(np.array(chosen, np.int64), ruled)

    def _quota_by_code(self, n: int) -> dict[int, int] | None:
        if self._field.strata is None:
            return None
        pairs = zip(self._strata, self.quotas(n).values(), strict=True)
        return {stratum.code: quota for stratum, quota in pairs}

    def _with_grams(self, wanted: bool) -> Iterator[tuple[int, Hashes]]:
        nothing = np.zeros(0, np.uint64)
        if not wanted:
            yield from ((row, nothing) for row in self._field.in_order())
            return
        rows = self._field.in_order()
        while len(some := np.fromiter(islice(rows, _WALK_ROWS), dtype=np.int64)):
            grams = shingles(texts_of(next(self._candidates.texts(some)), "conversation"))
            for i, row in enumerate(some.tolist()):
                yield row, np.unique(grams.of(i))


class _Apart:
    """The picks so far by their shingles: exact, so no two picks are ever nearer than the bound."""

    def __init__(self, max_similarity: float) -> None:
        self._bound = max_similarity
        self._sizes: list[int] = []
        self._holders: defaultdict[int, list[int]] = defaultdict(list)

    def admit(self, grams: Hashes) -> bool:
        """Take the row unless a pick is too near to it; a row without words is near to none."""
        keys = grams.tolist()
        common = Counter(pick for key in keys for pick in self._holders.get(key, ()))
        if any(n / (len(keys) + self._sizes[pick] - n) > self._bound for pick, n in common.items()):
            return False
        for key in keys:
            self._holders[key].append(len(self._sizes))
        self._sizes.append(len(keys))
        return True


@dataclass(frozen=True)
class _Stratum:
    """A value that has a quota: its code in the column (one that no row has where it is no value there), its rows."""

    value: str
    code: int
    n_rows: int


_NO_CODE = -2


def _strata(spec: StrategySpec, rows: Field) -> list[_Stratum]:
    """The values that have a quota, sorted."""
    if rows.strata is None or not isinstance(spec, Stratified):
        return []
    counts = rows.strata.count(rows.left)
    found = {
        value: _Stratum(value, code, n_rows)
        for code, (value, n_rows) in enumerate(zip(rows.strata.values, counts, strict=True))
        if n_rows
    }
    if isinstance(spec.quotas, dict):
        return [found.get(value, _Stratum(value, _NO_CODE, 0)) for value in sorted(spec.quotas)]
    return [found[value] for value in sorted(found)]
