"""Strategies: which of the rows that passed the filters are picked, and in what order (method.md section 3).

A strategy first rules rows out (with a reason), then ranks the rest, then picks `n` of them under constraints: a cap
on refusals, quotas, or a bound on how alike two picks may be. The answer never depends on the rows' order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from curator.config.strategies import (
    Diverse,
    DomainMatched,
    QuantileBand,
    StrategySpec,
    Stratified,
    Threshold,
    Weighted,
)
from curator.errors import RecipeError
from curator.filters import Candidates, Indices, Surroundings, texts_of
from curator.lexical import nearness
from curator.mix import exact
from curator.portable import portable_log
from curator.seeds import hash_keys

Ruled = dict[str, Indices]  # rows that a strategy leaves out, by reason

BELOW, ABOVE = "below_bound", "above_bound"
FAR = "far_from_task"
NO_STRATUM = "no_stratum"


@dataclass(frozen=True)
class Field:
    """The rows that a strategy picks from, and those it ruled out.

    `rows` are in any order; a lower `key` is better, and `id_rank` breaks ties; all three have one shape. `strata` has
    the rows' values of the column that quotas go by, or is None.
    """

    rows: Indices
    key: npt.NDArray[np.float64] | npt.NDArray[np.uint64]
    id_rank: Indices
    ruled_out: Ruled = field(default_factory=dict)
    strata: Mapping[int, str] | None = None

    @cached_property
    def ranking(self) -> Indices:
        """All rows, best first."""
        ranking: Indices = self.rows[np.lexsort((self.id_rank, self.key))]
        return ranking

    def best(self, n: int) -> Indices:
        """The first `n` of the ranking, without ranking the others."""
        if 4 * n >= len(self.rows):
            return self.ranking[:n]
        if n < 1:
            return self.rows[:0]
        near = np.flatnonzero(self.key <= np.partition(self.key, n - 1)[n - 1])
        best: Indices = self.rows[near[np.lexsort((self.id_rank[near], self.key[near]))[:n]]]
        return best


def needs_score(spec: StrategySpec) -> bool:
    """Whether rows without a gap cannot be judged by this strategy."""
    if spec.name in ("top_gap", "bottom_gap", "weighted", "threshold", "quantile_band"):
        return True
    return getattr(spec, "pick", "random") == "top_gap"


def ranks_by_score(spec: StrategySpec) -> bool:
    """Whether rank 1 is the best score; otherwise a rank would mean nothing to a reader."""
    return spec.name in ("top_gap", "bottom_gap") or getattr(spec, "pick", "random") == "top_gap"


def reads_texts(spec: StrategySpec) -> bool:
    """Whether the strategy needs the pool rows' messages."""
    return isinstance(spec, Diverse | DomainMatched)


def reads_task_rows(spec: StrategySpec) -> bool:
    """Whether the strategy reads the user's rows."""
    return isinstance(spec, DomainMatched)


def lay_out(spec: StrategySpec, candidates: Candidates, eligible: Indices, seed: int, around: Surroundings) -> Field:
    """The field that a strategy picks from; `eligible` rows passed the filters and can be judged.

    Raises RecipeError when stratified rows lack the column and the recipe does not say what to do.
    """
    ruled, strata = _RULES.get(spec.name, _no_rule)(spec, candidates, eligible, around)
    out = np.zeros(len(candidates.ids), dtype=np.bool_)
    for rows in ruled.values():
        out[rows] = True
    left = eligible[~out[eligible]]
    return Field(left, _key(spec, candidates, left, seed), candidates.id_rank[left], ruled, strata)


def _key(
    spec: StrategySpec, candidates: Candidates, rows: Indices, seed: int
) -> npt.NDArray[np.float64] | npt.NDArray[np.uint64]:
    """What rows are ranked by, lowest first."""
    kind = getattr(spec, "pick", spec.name)
    if kind == "random":
        keys = hash_keys([candidates.ids[i] for i in rows.tolist()], seed, "random")
        return np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64)
    score = candidates.score[rows]
    if isinstance(spec, Weighted):
        return -(score / spec.temperature + _gumbels([candidates.ids[i] for i in rows.tolist()], seed))
    return score if kind == "bottom_gap" else -score


def _gumbels(ids: list[str], seed: int) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for each id: the largest n of score / temperature + noise are a weighted sample."""
    keys = [int.from_bytes(key, "big") >> 11 for key in hash_keys(ids, seed, "weighted")]
    uniform = (np.array(keys, dtype=np.float64) + 0.5) * 2.0**-53
    return -portable_log(-portable_log(uniform)) if keys else np.zeros(0)


Rule = Callable[[StrategySpec, Candidates, Indices, Surroundings], tuple[Ruled, "dict[int, str] | None"]]


def _no_rule(spec: StrategySpec, c: Candidates, rows: Indices, around: Surroundings) -> tuple[Ruled, None]:
    return {}, None


def _threshold(spec: StrategySpec, c: Candidates, rows: Indices, around: Surroundings) -> tuple[Ruled, None]:
    assert isinstance(spec, Threshold)
    score = c.score[rows]
    low, high = (-np.inf if spec.min is None else spec.min), (np.inf if spec.max is None else spec.max)
    return {BELOW: rows[score < low], ABOVE: rows[score > high]}, None


def _quantile_band(spec: StrategySpec, c: Candidates, rows: Indices, around: Surroundings) -> tuple[Ruled, None]:
    """Of n rows in ascending order of score, ties by id, those from the low * n-th to the high * n-th (1-based)."""
    assert isinstance(spec, QuantileBand)
    ascending = rows[np.lexsort((c.id_rank[rows], c.score[rows]))]
    start, end = (int(exact(bound) * len(rows)) for bound in (spec.low, spec.high))
    return {BELOW: ascending[:start], ABOVE: ascending[end:]}, None


def _domain_matched(spec: StrategySpec, c: Candidates, rows: Indices, around: Surroundings) -> tuple[Ruled, None]:
    assert isinstance(spec, DomainMatched)
    near = nearness(
        lambda: (texts_of(chunk, "prompt") for chunk in c.texts(rows)),
        len(rows),
        lambda: (texts_of(batch, "prompt") for batch in around.task_texts()),
    )
    nearest_first = rows[np.lexsort((c.id_rank[rows], -near))]
    n_kept = -int(-exact(spec.nearest) * len(rows) // 1)  # rounded up
    return {FAR: nearest_first[n_kept:]}, None


def _stratified(
    spec: StrategySpec, c: Candidates, rows: Indices, around: Surroundings
) -> tuple[Ruled, "dict[int, str]"]:
    assert isinstance(spec, Stratified)
    values = _values(spec, c, rows)
    lacking = [row for row, value in values.items() if value is None]
    if lacking and spec.missing == "fail":
        raise RecipeError(
            f"stratified by {spec.by}: {len(lacking):,} of {len(rows):,} rows have no {spec.by}; bring the label, or "
            "say missing: drop to leave them out",
            details=[{"column": spec.by, "rows": len(rows), "without": len(lacking)}],
        )
    named = spec.quotas if isinstance(spec.quotas, dict) else None
    other = [row for row, value in values.items() if value is not None and named is not None and value not in named]
    ruled = {f"{spec.by}:missing": np.array(lacking, np.int64), NO_STRATUM: np.array(other, np.int64)}
    return ruled, {row: value for row, value in values.items() if value is not None}


def _values(spec: Stratified, c: Candidates, rows: Indices) -> dict[int, str | None]:
    if spec.by in c.labels:
        return {row: c.labels[spec.by][row] for row in rows.tolist()}
    counts = c.counts[spec.by]
    return {row: None if np.isnan(counts[row]) else f"{counts[row]:g}" for row in rows.tolist()}


_RULES: dict[str, Rule] = {
    "threshold": _threshold,
    "quantile_band": _quantile_band,
    "domain_matched": _domain_matched,
    "stratified": _stratified,
}
