"""Strategies: which rows that passed the filters are picked, in what order (method.md, "Choosing safe rows").

A strategy first rules rows out (with a reason), then ranks the rest, then picks `n` of them under constraints: a cap
on refusals, quotas, or a bound on how alike two picks may be. The answer never depends on the rows' order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from curator.errors import RecipeError
from curator.recipe.fractions import exact
from curator.recipe.seeds import hash_keys
from curator.recipe.strategies import (
    DomainMatched,
    QuantileBand,
    StrategySpec,
    Stratified,
    Threshold,
    Weighted,
)
from curator.select.columns import (
    Coded,
    Indices,
    Mask,
    Masked,
    Numbers,
)
from curator.select.filters import Candidates, Surroundings, texts_of
from curator.select.portable import portable_log
from curator.select.ranking import top
from curator.select.tfidf import nearness

Ruled = dict[str, Indices]  # rows that a strategy leaves out, by reason

BELOW, ABOVE = "below_bound", "above_bound"
FAR = "far_from_task"
NO_STRATUM = "no_stratum"

Best = Callable[[Masked, int], Indices]  # the best n of the masked rows, best first


@dataclass(frozen=True)
class Field:
    """The rows that a strategy picks from (a mask over the candidates), and those it ruled out.

    `strata` is the column that quotas go by, or None.
    """

    left: Mask
    best_of: Best
    ruled_out: Ruled = field(default_factory=dict)
    strata: Coded | None = None

    @cached_property
    def n_rows(self) -> int:
        """Rows in the field."""
        return int(np.count_nonzero(self.left))

    def best(self, n: int) -> Indices:
        """The first `n` rows of the ranking, without ranking the others; all where there are fewer."""
        return self.best_of(self.left, n)

    def in_order(self) -> Iterator[int]:
        """All rows, best first, ranked only as far as they are asked for."""
        done, n = 0, 512
        while done < self.n_rows:
            rows = self.best(n)
            yield from rows[done:].tolist()
            done, n = len(rows), 4 * n


def lay_out(spec: StrategySpec, candidates: Candidates, left: Mask, seed: int, around: Surroundings) -> Field:
    """The field that a strategy picks from; the rows `left` passed the filters and can be judged.

    Raises RecipeError when stratified rows lack the column and the recipe does not say what to do.
    """
    ruled, strata = _RULES.get(spec.name, _no_rule)(spec, candidates, left, around)
    if ruled:
        left = left.copy()
        for rows in ruled.values():
            left[rows] = False
    return Field(left, _best(spec, candidates, left, seed), ruled, strata)


def _best(spec: StrategySpec, candidates: Candidates, left: Mask, seed: int) -> Best:
    """How rows are ranked."""
    kind = getattr(spec, "pick", spec.name)
    if kind == "top_gap":
        return candidates.scores.best
    rows = np.flatnonzero(left)
    keys = np.zeros(len(left))
    if kind == "random":
        found = hash_keys(candidates.ids.texts(rows), seed, "random")
        keys = np.zeros(len(left), dtype=np.uint64)
        keys[rows] = np.frombuffer(b"".join(found), dtype=">u8")
    elif isinstance(spec, Weighted):
        score = candidates.scores.at(rows)
        keys[rows] = -(score / spec.temperature + _gumbels(candidates.ids.texts(rows), seed))
    else:
        keys[rows] = candidates.scores.at(rows)

    def best(among: Masked, n: int) -> Indices:
        masked = np.flatnonzero(among[:])
        return top(masked, keys[masked], candidates.id_rank[masked], n)

    return best


def _gumbels(ids: list[str], seed: int) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for each id: the largest n of score / temperature + noise are a weighted sample."""
    keys = [int.from_bytes(key, "big") >> 11 for key in hash_keys(ids, seed, "weighted")]
    uniform = (np.array(keys, dtype=np.float64) + 0.5) * 2.0**-53
    return -portable_log(-portable_log(uniform)) if keys else np.zeros(0)


Rule = Callable[[StrategySpec, Candidates, Mask, Surroundings], tuple[Ruled, Coded | None]]


def _no_rule(spec: StrategySpec, c: Candidates, left: Mask, around: Surroundings) -> tuple[Ruled, None]:
    return {}, None


def _threshold(spec: StrategySpec, c: Candidates, left: Mask, around: Surroundings) -> tuple[Ruled, None]:
    assert isinstance(spec, Threshold)
    rows = np.flatnonzero(left)
    score = c.scores.at(rows)
    low, high = (-np.inf if spec.min is None else spec.min), (np.inf if spec.max is None else spec.max)
    return {BELOW: rows[score < low], ABOVE: rows[score > high]}, None


def _quantile_band(spec: StrategySpec, c: Candidates, left: Mask, around: Surroundings) -> tuple[Ruled, None]:
    """Of n rows in ascending order of score, ties by id, those from the low * n-th to the high * n-th (1-based)."""
    assert isinstance(spec, QuantileBand)
    rows = np.flatnonzero(left)
    ascending = rows[np.lexsort((c.id_rank[rows], c.scores.at(rows)))]
    start, end = (int(exact(bound) * len(rows)) for bound in (spec.low, spec.high))
    return {BELOW: ascending[:start], ABOVE: ascending[end:]}, None


def _domain_matched(spec: StrategySpec, c: Candidates, left: Mask, around: Surroundings) -> tuple[Ruled, None]:
    assert isinstance(spec, DomainMatched)
    rows = np.flatnonzero(left)
    near = nearness(
        lambda: (texts_of(chunk, "prompt") for chunk in c.texts(rows)),
        len(rows),
        lambda: (texts_of(batch, "prompt") for batch in around.task_texts()),
    )
    nearest_first = rows[np.lexsort((c.id_rank[rows], -near))]
    n_kept = -int(-exact(spec.nearest) * len(rows) // 1)  # rounded up
    return {FAR: nearest_first[n_kept:]}, None


def _stratified(spec: StrategySpec, c: Candidates, left: Mask, around: Surroundings) -> tuple[Ruled, Coded]:
    assert isinstance(spec, Stratified)
    strata = c.labels[spec.by] if spec.by in c.labels else _coded_numbers(c.counts[spec.by])
    lacking = np.flatnonzero(left & strata.missing)
    if len(lacking) and spec.missing == "fail":
        n_left = int(np.count_nonzero(left))
        raise RecipeError(
            f"stratified by {spec.by}: {len(lacking):,} of {n_left:,} rows have no {spec.by}; bring the label, or "
            "say missing: drop to leave them out",
            details=[{"column": spec.by, "rows": n_left, "without": len(lacking)}],
        )
    ruled = {f"{spec.by}:missing": lacking, NO_STRATUM: lacking[:0]}
    if isinstance(spec.quotas, dict):
        named = strata.where(spec.quotas.__contains__)
        ruled[NO_STRATUM] = np.flatnonzero(left & ~named & ~strata.missing)
    return ruled, strata


def _coded_numbers(counts: Numbers) -> Coded:
    numbers, codes = np.unique(counts.astype(np.float64), return_inverse=True)  # one NaN at most, and last
    known = numbers[~np.isnan(numbers)]
    return Coded(np.where(codes < len(known), codes, -1), tuple(f"{number:g}" for number in known.tolist()))


_RULES: dict[str, Rule] = {
    "threshold": _threshold,
    "quantile_band": _quantile_band,
    "domain_matched": _domain_matched,
    "stratified": _stratified,
}
