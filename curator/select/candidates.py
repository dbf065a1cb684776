"""What filters and strategies see of a pool: columns, scores, ids and texts. Values only: no files.

A row is identified by its number. They stand in the order of their ids, so a row number breaks ties as the id does.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from curator.recipe.filters import TextPart
from curator.select.minhash import Signatures

Rows = npt.NDArray[np.int64]  # row numbers

CHUNK_ROWS = 8192  # rows whose texts are held at once
TOKENS = "n_response_tokens"
_SAMPLE_SHARE = 16  # of the rows are looked at for a first bound on the n-th best key


class Ids(Protocol):
    """The ids of a pool's rows, which ascend with the row number."""

    def texts(self, rows: Rows) -> list[str]:
        """The ids of these rows, in their order."""
        ...

    def find(self, wanted: Collection[str]) -> Rows:
        """Rows whose id is among `wanted`, ascending."""
        ...


@dataclass(frozen=True)
class ListedIds:
    """Ids given as ascending texts."""

    ids: Sequence[str]

    def texts(self, rows: Rows) -> list[str]:
        """The ids of these rows."""
        return [self.ids[row] for row in rows.tolist()]

    def find(self, wanted: Collection[str]) -> Rows:
        """Rows whose id is among `wanted`."""
        return np.flatnonzero(np.fromiter((item in wanted for item in self.ids), np.bool_, len(self.ids)))


class Scores(Protocol):
    """What a recipe ranks the rows of a pool by; null stands for a row that has no score."""

    @property
    def known(self) -> pl.Series:
        """A mask of the rows that have a score."""
        ...

    @property
    def column(self) -> pl.Series:
        """The scores of all rows."""
        ...

    def at(self, rows: Rows) -> pl.Series:
        """The scores of these rows, in their order."""
        ...

    def top(self, left: pl.Series, n: int) -> Rows:
        """The n masked rows with the highest scores, best first, ties by row; fewer where there are fewer."""
        ...


@dataclass(frozen=True)
class ColumnScores:
    """Scores that are there as one column of floats."""

    column: pl.Series

    @property
    def known(self) -> pl.Series:
        """A mask of the rows that have a score."""
        return self.column.is_not_null()

    def at(self, rows: Rows) -> pl.Series:
        """The scores of these rows."""
        return self.column.gather(rows)

    def top(self, left: pl.Series, n: int) -> Rows:
        """The n best masked rows."""
        return first_rows(self.column, left, n, descending=True)


@dataclass(frozen=True)
class Candidates:
    """The rows of one pool that may be chosen.

    `columns(*names)` gives whole columns: masks `refusal_v1` and `refusal_v2` (the last answer opens like a refusal),
    those of hygiene (curator.select.hygiene), label columns of type Enum (null without a label), and counts (`n_chars`,
    `n_turns`, `n_response_tokens`, null where unknown). `messages` gives the canonical JSON of some rows, in their
    order, and `reading_order` sorts rows as they are read fastest. `signatures` (curator.select.minhash) are those of
    all rows, where they are kept. `remember(key, make)` gives what `make` gave for an equal key before, where the pool
    stays open.
    """

    n_rows: int
    columns: Callable[..., pl.DataFrame]
    ids: Ids
    scores: Scores
    messages: Callable[[Rows], list[str]] | None = None
    reading_order: Callable[[Rows], Rows] = lambda rows: rows
    signatures: Callable[[TextPart], Signatures] | None = None
    remember: Callable[[Any, Callable[[], Any]], Any] = lambda key, make: make()

    def __len__(self) -> int:
        return self.n_rows

    def column(self, name: str) -> pl.Series:
        """One column."""
        return self.columns(name).get_column(name)

    def texts(self, rows: Rows) -> Iterator[list[str]]:
        """The canonical JSON of these rows in their order, chunk by chunk."""
        assert self.messages is not None, "texts are needed and were not given"
        for start in range(0, len(rows), CHUNK_ROWS):
            yield self.messages(rows[start : start + CHUNK_ROWS])

    def mask(self, rows: Rows) -> pl.Series:
        """These rows as a mask over all."""
        marks = np.zeros(self.n_rows, dtype=np.bool_)
        marks[rows] = True
        return pl.Series(marks)


@dataclass(frozen=True)
class Context:
    """What lies outside the pool: the user's rows, and evaluation prompts by the name of their set.

    `task_texts()` starts a pass over the canonical JSON of the user's rows, batch by batch.
    """

    task_texts: Callable[[], Iterator[list[str]]] = lambda: iter(())
    evaluations: Mapping[str, Sequence[str]] = field(default_factory=dict)


def label_values(labels: pl.Series) -> list[str]:
    """The distinct texts of a label column, sorted."""
    kind: Any = labels.dtype
    return list(kind.categories.to_list())


def first_rows(keys: pl.Series, left: pl.Series, n: int, *, descending: bool) -> Rows:
    """The first n masked rows in the order of their keys, ties by row; rows with a null key are left out.

    Few rows are sorted: those no worse than the n-th of a sample, since the n-th of all is not a worse either.
    """
    if n < 1:
        return np.zeros(0, dtype=np.int64)
    size = len(keys) // _SAMPLE_SHARE
    if 2 * n * _SAMPLE_SHARE < len(keys):
        sample = keys.head(size).filter(left.head(size)).drop_nulls()
        best = sample.top_k(n) if descending else sample.bottom_k(n)
        if len(best) == n:
            bound = best.min() if descending else best.max()
            left = left & ((keys >= bound) if descending else (keys <= bound)).fill_null(False)
    rows = left.arg_true()
    table = pl.DataFrame({"row": rows, "key": keys.gather(rows)}).drop_nulls()
    return table.sort("key", "row", descending=[descending, False]).head(n)["row"].cast(pl.Int64).to_numpy()
