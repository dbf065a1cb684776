"""Strategies: which of the rows that passed the filters are picked, and in what order (method.md section 3).

A strategy first rules rows out (with a reason), then ranks the rest, then picks `n` of them under constraints: a cap
on refusals, quotas, or a bound on how alike two picks may be. The answer never depends on the rows' order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

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

Mask = npt.NDArray[np.bool_]
Ruled = dict[str, Indices]  # rows that a strategy leaves out, by reason

BELOW, ABOVE = "below_bound", "above_bound"
FAR = "far_from_task"
NO_STRATUM = "no_stratum"


@dataclass(frozen=True)
class Field:
    """The rows that a strategy picks from, best first, and those it ruled out. `strata` are their values, or None."""

    ranking: Indices
    ruled_out: Ruled = field(default_factory=dict)
    strata: npt.NDArray[np.object_] | None = None


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
    ruled, strata_of = _RULES.get(spec.name, _no_rule)(spec, candidates, eligible, around)
    out = np.concatenate([np.zeros(0, np.int64), *ruled.values()])
    left = eligible[~np.isin(eligible, out)] if len(out) else eligible
    ranking = left[_order(spec, candidates, left, seed)]
    strata = None if strata_of is None else np.array([strata_of[i] for i in ranking], dtype=object)
    return Field(ranking, ruled, strata)


def _order(spec: StrategySpec, candidates: Candidates, rows: Indices, seed: int) -> Indices:
    """Places in `rows`, best first; ties break on the id."""
    ids = np.array([candidates.ids[i] for i in rows], dtype=np.str_)
    kind = getattr(spec, "pick", spec.name)
    if kind == "random":
        keys = np.array(hash_keys(ids.tolist(), seed, "random"), dtype="S8").view(">u8") if len(ids) else ids
        return np.lexsort((ids, keys))
    score = candidates.score[rows]
    if isinstance(spec, Weighted):
        score = score / spec.temperature + _gumbels(ids.tolist(), seed)
    return np.lexsort((ids, score if kind == "bottom_gap" else -score))


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
    ids = np.array([c.ids[i] for i in rows], dtype=np.str_)
    ascending = rows[np.lexsort((ids, c.score[rows]))]
    start, end = (int(exact(bound) * len(rows)) for bound in (spec.low, spec.high))
    return {BELOW: ascending[:start], ABOVE: ascending[end:]}, None


def _domain_matched(spec: StrategySpec, c: Candidates, rows: Indices, around: Surroundings) -> tuple[Ruled, None]:
    assert isinstance(spec, DomainMatched)
    near = nearness(
        lambda: (texts_of(chunk, "prompt") for chunk in c.texts(rows)),
        len(rows),
        lambda: (texts_of(batch, "prompt") for batch in around.task_texts()),
    )
    ids = np.array([c.ids[i] for i in rows], dtype=np.str_)
    nearest_first = rows[np.lexsort((ids, -near))]
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
