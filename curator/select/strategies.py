"""Strategies: which rows that passed the filters are chosen, in what order (method.md, "Choosing safe rows").

A strategy first rules rows out (with a reason), then ranks the rest by a key. It is one or two functions and one line
in `STRATEGIES`. `curator.select.select` then takes rows under constraints: a cap on refusals, quotas, or a bound on
how alike two chosen rows may be. The answer never depends on the order in which rows are read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from curator.corpus.text import texts_of
from curator.errors import RecipeError
from curator.recipe.fractions import exact
from curator.recipe.seeds import hash_keys
from curator.recipe.strategies import (
    BottomGap,
    Coverage,
    Diverse,
    DomainMatched,
    QuantileBand,
    Random,
    StrategySpec,
    Stratified,
    Threshold,
    TopGap,
    Weighted,
)
from curator.select.candidates import (
    Candidates,
    Context,
    Rows,
    first_rows,
    label_values,
)
from curator.select.tfidf import nearness, portable_log

BELOW, ABOVE = "below_bound", "above_bound"
FAR = "far_from_task"
NO_STRATUM = "no_stratum"

Masks = dict[str, pl.Series]  # rows that a strategy rules out, by reason


@dataclass(frozen=True)
class Ranking:
    """The masked rows that a strategy chooses from, and how they are ranked; `strata` is the column of its quotas.

    `top(mask, n)` gives the first n of the masked rows, best first.
    """

    left: pl.Series
    top: Callable[[pl.Series, int], Rows]
    ruled_out: Masks = field(default_factory=dict)
    strata: pl.Series | None = None

    @cached_property
    def n_rows(self) -> int:
        """Rows to choose from."""
        return int(self.left.sum())

    def best(self, n: int) -> Rows:
        """The first `n` rows, without ranking the others; all where there are fewer."""
        return self.top(self.left, n)

    def in_order(self) -> Iterator[int]:
        """All rows, best first, ranked only as far as they are taken."""
        done, n = 0, 512
        while done < self.n_rows:
            rows = self.best(n)
            yield from rows[done:].tolist()
            done, n = len(rows), 4 * n


@dataclass(frozen=True)
class Key:
    """How rows are ranked: by the score, or by a key of each row."""

    by_row: Callable[[Any, Candidates, Rows, int], npt.NDArray[Any]] | None = None
    descending: bool = True


RuleOut = Callable[[Any, Candidates, pl.Series, Context], Masks]


@dataclass(frozen=True)
class Strategy:
    """A strategy as functions; without a `key` it ranks as its `pick` says."""

    key: Key | None = None
    rule_out: RuleOut | None = None


def rank(spec: StrategySpec, candidates: Candidates, left: pl.Series, seed: int, context: Context) -> Ranking:
    """The rows that a strategy chooses from and their order; the masked rows passed the filters and can be judged.

    Raises RecipeError when stratified rows lack the column and the recipe does not say what to do.
    """
    strategy = STRATEGIES[type(spec)]
    ruled = {} if strategy.rule_out is None else strategy.rule_out(spec, candidates, left, context)
    for mask in ruled.values():
        left = left & ~mask
    key = strategy.key or _PICKS[getattr(spec, "pick")]  # noqa: B009 - not every strategy has the field
    strata = strata_of(spec, candidates) if isinstance(spec, Stratified) else None
    if key.by_row is None and key.descending:
        return Ranking(left, candidates.scores.top, ruled, strata)
    if key.by_row is None:
        keys = candidates.scores.column
    else:
        rows = left.arg_true().cast(pl.Int64).to_numpy()
        found = pl.DataFrame({"row": rows, "key": key.by_row(spec, candidates, rows, seed)})
        everyone = pl.int_range(len(candidates), dtype=pl.Int64, eager=True).alias("row").to_frame()
        keys = everyone.join(found, on="row", how="left", maintain_order="left")["key"].rechunk()

    def top(mask: pl.Series, n: int) -> Rows:
        return first_rows(keys, mask, n, descending=key.descending)

    return Ranking(left, top, ruled, strata)


def _random(spec: StrategySpec, candidates: Candidates, rows: Rows, seed: int) -> npt.NDArray[np.uint64]:
    keys = hash_keys(candidates.ids.texts(rows), seed, "random")
    return np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64)


def _weighted(spec: Weighted, candidates: Candidates, rows: Rows, seed: int) -> npt.NDArray[np.float64]:
    """The score over the temperature, with Gumbel noise: the largest n are a weighted sample without replacement."""
    keys = [int.from_bytes(key, "big") >> 11 for key in hash_keys(candidates.ids.texts(rows), seed, "weighted")]
    uniform = (np.array(keys, dtype=np.float64) + 0.5) * 2.0**-53
    gumbel = -portable_log(-portable_log(uniform)) if keys else np.zeros(0)
    return candidates.scores.at(rows).to_numpy() / spec.temperature + gumbel


def _threshold(spec: Threshold, candidates: Candidates, left: pl.Series, context: Context) -> Masks:
    score = pl.col("score")
    low, high = (-np.inf if spec.min is None else spec.min), (np.inf if spec.max is None else spec.max)
    masks = pl.DataFrame({"score": candidates.scores.column}).select(below=score < low, above=score > high)
    return {BELOW: left & masks["below"].fill_null(False), ABOVE: left & masks["above"].fill_null(False)}


def _quantile_band(spec: QuantileBand, candidates: Candidates, left: pl.Series, context: Context) -> Masks:
    """Of n rows in ascending order of score, ties by id, those from the low * n-th to the high * n-th (1-based)."""
    rows = left.arg_true()
    table = pl.DataFrame({"row": rows, "score": candidates.scores.column.gather(rows)}).sort("score", "row")
    start, end = (int(exact(bound) * len(rows)) for bound in (spec.low, spec.high))
    ascending = table["row"].cast(pl.Int64).to_numpy()
    return {BELOW: candidates.mask(ascending[:start]), ABOVE: candidates.mask(ascending[end:])}


def _far_from_task(spec: DomainMatched, candidates: Candidates, left: pl.Series, context: Context) -> Masks:
    rows = candidates.reading_order(left.arg_true().cast(pl.Int64).to_numpy())
    near = nearness(
        lambda: (texts_of(chunk, "prompt") for chunk in candidates.texts(rows)),
        len(rows),
        lambda: (texts_of(batch, "prompt") for batch in context.task_texts()),
    )
    nearest_first = pl.DataFrame({"row": rows, "near": near}).sort("near", "row", descending=[True, False])
    n_kept = -int(-exact(spec.nearest) * len(rows) // 1)  # rounded up
    return {FAR: candidates.mask(nearest_first["row"].slice(n_kept).to_numpy())}


def _without_stratum(spec: Stratified, candidates: Candidates, left: pl.Series, context: Context) -> Masks:
    strata = strata_of(spec, candidates)
    missing = strata.is_null()
    lacking = left & missing
    if lacking.any() and spec.missing == "fail":
        n_left, n_lacking = int(left.sum()), int(lacking.sum())
        raise RecipeError(
            f"stratified by {spec.by}: {n_lacking:,} of {n_left:,} rows have no {spec.by}; bring the label, or "
            "say missing: drop to leave them out",
            details=[{"column": spec.by, "rows": n_left, "without": n_lacking}],
        )
    other = lacking & ~lacking
    if isinstance(spec.quotas, dict):
        named = [value for value in label_values(strata) if value in spec.quotas]
        other = left & ~missing & ~strata.is_in(named).fill_null(False)
    return {f"{spec.by}:missing": lacking, NO_STRATUM: other}


def strata_of(spec: Stratified, candidates: Candidates) -> pl.Series:
    """The column of a strategy's quotas as an Enum; numbers become their text."""
    column = candidates.column(spec.by)
    if isinstance(column.dtype, pl.Enum):
        return column
    texts = column.cast(pl.String)
    return texts.cast(pl.Enum(texts.unique().drop_nulls().sort()))


_SCORE, _HASH = Key(), Key(_random, descending=False)
_PICKS: Mapping[Literal["random", "top_gap"], Key] = {"random": _HASH, "top_gap": _SCORE}

STRATEGIES: Mapping[type, Strategy] = {
    Random: Strategy(_HASH),
    TopGap: Strategy(_SCORE),
    BottomGap: Strategy(Key(descending=False)),
    Weighted: Strategy(Key(_weighted)),
    Threshold: Strategy(rule_out=_threshold),
    QuantileBand: Strategy(rule_out=_quantile_band),
    Stratified: Strategy(rule_out=_without_stratum),
    Diverse: Strategy(),
    Coverage: Strategy(_SCORE),
    DomainMatched: Strategy(rule_out=_far_from_task),
}
