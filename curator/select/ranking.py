"""Scores of a pool's rows, and the best of them: pure values over whatever holds the scores."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from curator.select.columns import (
    Floats,
    Indices,
    Mask,
    Masked,
    Ranks,
)

# Slack of a bound against the rounding of means: relative to the larger of it and 1.
ROUNDING = 1e-9


class Scores(Protocol):
    """What a recipe ranks the rows of a pool by; NaN stands for a row that has no score."""

    @property
    def known(self) -> Mask:
        """Rows that have a score, shape (n_rows,)."""
        ...

    @property
    def every(self) -> Floats:
        """The scores of all rows, shape (n_rows,)."""
        ...

    def at(self, rows: Indices) -> Floats:
        """The scores of these rows, in their order."""
        ...

    def best(self, among: Masked, n: int) -> Indices:
        """The n rows with the highest scores among the masked ones, best first, ties by id; fewer if there are."""
        ...


def top(rows: Indices, keys: Floats, rank: Ranks, n: int) -> Indices:
    """The first n of `rows` in ascending order of `keys`, ties by `rank`, without sorting the others."""
    if n < 1:
        return rows[:0]
    if 4 * n < len(rows):
        near = np.flatnonzero(keys <= np.partition(keys, n - 1)[n - 1])
        rows, keys, rank = rows[near], keys[near], rank[near]
    best: Indices = rows[np.lexsort((rank, keys))[:n]]
    return best


@dataclass(frozen=True)
class ArrayScores:
    """Scores held as one array; `rank` breaks ties."""

    every: Floats
    rank: Ranks

    @cached_property
    def known(self) -> Mask:
        """Rows that have a score."""
        return ~np.isnan(self.every)

    def at(self, rows: Indices) -> Floats:
        """The scores of these rows."""
        return self.every[rows]

    def best(self, among: Masked, n: int) -> Indices:
        """The n best rows among the masked ones."""
        rows = np.flatnonzero(among[:] & self.known)
        return top(rows, -self.every[rows], self.rank[rows], n)


def best_by_blocks(
    among: Masked, n: int, at: Callable[[Indices], Floats], rank: Ranks, bounds: Floats, block_rows: int
) -> Indices:
    """The n best masked rows with few scores computed: `bounds` has, for each block of rows, what none exceeds.

    NaN bounds a block without any score. Blocks are taken from the highest bound down, in steps that double, until
    the n-th best score lies above every bound that is left.
    """
    order = np.argsort(-bounds, kind="stable")[: int(np.count_nonzero(~np.isnan(bounds)))]
    rows, scores = np.zeros(0, dtype=np.int64), np.zeros(0)
    done, step = 0, max(8, -(-2 * n // block_rows))
    while done < len(order):
        new = _rows_of(among, np.sort(order[done : done + step]), block_rows)
        done, step = done + step, 2 * step
        found = at(new)
        new, found = new[~np.isnan(found)], found[~np.isnan(found)]
        rows, scores = np.concatenate([rows, new]), np.concatenate([scores, found])
        if len(rows) >= n > 0 and done < len(order):
            lowest = float(-np.partition(-scores, n - 1)[n - 1])
            left = float(bounds[order[done]])
            if lowest > left + ROUNDING * max(1.0, abs(left)):
                break
        elif n == 0:
            break
    return top(rows, -scores, rank[rows], n)


def _rows_of(among: Masked, blocks: Indices, block_rows: int) -> Indices:
    """Masked rows of these blocks, ascending."""
    pieces = [np.flatnonzero(among[start : start + block_rows]) + start for start in (blocks * block_rows).tolist()]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
