"""The scores that a recipe ranks a pool by: a column of the pool's frame, or computed by `sql/` for few rows.

The gap over all misaligned scorers is a column. Any other one with the default eps is computed for the rows alone whose
`bound` says that they can be among the best; the others need a pass over all rows.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import polars as pl

from curator.query.gaps import Gaps, GapSpec, Losses
from curator.recipe import DEFAULT_EPS
from curator.select.candidates import Rows, first_rows

# Slack of a bound against the rounding of means: relative to the larger of it and 1.
ROUNDING = 1e-9
_NEAR = 8  # times as many rows as requested are computed first, which is mostly enough


class Columns(Protocol):
    """A pool's columns: whole, or of some rows."""

    def __call__(self, *names: str) -> pl.DataFrame:
        """Whole columns."""
        ...

    def at(self, rows: Rows, *names: str) -> pl.DataFrame:
        """Some rows, in their order."""
        ...


@dataclass(frozen=True)
class GapChoice:
    """The members of one gap by place, and how their losses become it; `of_all` misaligned members of the pool."""

    name: str
    misaligned: tuple[int, ...]
    benign: tuple[int, ...]
    spec: GapSpec
    of_all: bool

    @property
    def is_column(self) -> bool:
        """Whether it is the column `gap` of the pool."""
        return self.of_all and self.has_bound and self.spec.reducer == "mean"

    @property
    def has_bound(self) -> bool:
        """Whether the column `bound` of the pool holds for it."""
        return bool(self.misaligned) and self.name == "gap_rel" and self.spec.eps == DEFAULT_EPS

    @property
    def columns(self) -> list[str]:
        """The columns of a pool that it is computed from."""
        places = [0, *self.misaligned, *self.benign] if self.misaligned else []
        return [*(f"mean_nll_{i}" for i in places), "n_response_tokens"]

    def losses(self, rows: pl.DataFrame) -> Losses:
        """The losses in rows that have these columns."""
        nothing = pl.repeat(None, rows.height, dtype=pl.Float64, eager=True)
        return Losses(
            rows["mean_nll_0"] if self.misaligned else nothing,
            rows.select(f"mean_nll_{i}" for i in self.misaligned),
            rows.select(f"mean_nll_{i}" for i in self.benign),
            rows["n_response_tokens"],
        )


@dataclass(frozen=True)
class GapScores:
    """`curator.select.candidates.Scores` over a pool."""

    n_rows: int
    columns: Columns
    gaps: Gaps
    choice: GapChoice

    @cached_property
    def known(self) -> pl.Series:
        """A mask of the rows that have a score: none of its losses is missing."""
        choice = self.choice
        contrast = choice.name == "gap_contrast"
        if not choice.misaligned or (contrast and not choice.benign):
            return pl.repeat(False, self.n_rows, dtype=pl.Boolean, eager=True)
        if choice.is_column or (choice.spec.eps == 0 and choice.name == "gap_rel"):
            return self.column.is_not_null()
        names = [f"has_loss_{i}" for i in (*choice.misaligned, *(choice.benign if contrast else (0,)))]
        return self.columns(*names).select(pl.all_horizontal(names)).to_series()

    @cached_property
    def column(self) -> pl.Series:
        """The scores of all rows."""
        if self.choice.is_column:
            return self.columns("gap")["gap"]
        if not self.choice.misaligned:
            return pl.repeat(None, self.n_rows, dtype=pl.Float64, eager=True)
        losses = self.choice.losses(self.columns(*self.choice.columns))
        return self.gaps.columns(losses, self.choice.spec, [self.choice.name])[self.choice.name]

    def at(self, rows: Rows) -> pl.Series:
        """The scores of these rows."""
        if "column" in self.__dict__ or self.choice.is_column or not self.choice.misaligned:
            return self.column.gather(rows)
        # Whole columns of losses: more rows will be asked for.
        losses = self.choice.losses(self.columns(*self.choice.columns).select(pl.all().gather(rows)))
        return self.gaps.columns(losses, self.choice.spec, [self.choice.name])[self.choice.name]

    def top(self, left: pl.Series, n: int) -> Rows:
        """The n best masked rows."""
        if self.choice.is_column or not self.choice.has_bound or "column" in self.__dict__:
            return first_rows(self.column, left, n, descending=True)
        if n < 1:
            return np.zeros(0, dtype=np.int64)
        bound = self.columns("bound")["bound"]
        near = first_rows(bound, left, _NEAR * n, descending=True)
        scores, lowest = self.at(near), -np.inf
        if len(scores.drop_nulls()) >= n and scores.drop_nulls().is_finite().all():
            lowest = scores.drop_nulls().top_k(n).to_numpy().min()
        least = lowest - ROUNDING * max(1.0, abs(lowest))
        rest = np.zeros(0, dtype=np.int64)
        if len(near) == _NEAR * n and not bound[int(near[-1])] < least:  # rows that were not computed may be among them
            may = (bound >= least).fill_null(False)
            rows = (left & may).arg_true().cast(pl.Int64).to_numpy()
            rest = np.setdiff1d(rows, near, assume_unique=True)
        table = pl.DataFrame(
            {"row": np.concatenate([near, rest]), "score": pl.concat([scores, self.at(rest)]) if len(rest) else scores}
        ).drop_nulls()
        return table.sort("score", "row", descending=[True, False]).head(n)["row"].to_numpy()
