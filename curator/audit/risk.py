"""Per-row risk: the sign-flipped gap against pool rows of like length (docs/method.md, "Audits"; ours). Pure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LENGTH_FACTOR = 2.0  # pool rows are of like length when neither is longer than the other by more than this
MIN_REFERENCE = 20  # fewer pool rows of like length say nothing about a row


@dataclass(frozen=True)
class Percentiles:
    """For each row the share of like pool rows with a lower risk (ties count half), and how many there were.

    `value` is NaN where the row has no risk or fewer than MIN_REFERENCE like rows.
    """

    value: Floats  # (N,)
    n_reference: Counts  # (N,)


def like_length(n_tokens: Floats, pool_tokens: Floats) -> npt.NDArray[np.bool_]:
    """Whether a pool row is of like length, (N, P); counts are response tokens, NaN fits nothing."""
    ratio_NP = n_tokens[:, None] / pool_tokens[None, :]
    return (ratio_NP <= LENGTH_FACTOR) & (ratio_NP >= 1 / LENGTH_FACTOR)


def below(risk: Floats, pool_risk: Floats) -> Floats:
    """1 where a pool row's risk is below the row's, 0.5 where equal, else 0: (N, P)."""
    lower, equal = pool_risk[None, :] < risk[:, None], pool_risk[None, :] == risk[:, None]
    return np.where(lower, 1.0, np.where(equal, 0.5, 0.0))


def percentiles(
    risk: Floats,
    n_tokens: Floats,
    pool_risk: Floats,
    pool_tokens: Floats,
    on_done: Callable[[int], None] = lambda done: None,
) -> Percentiles:
    """Each row against the pool rows of like length. Pool rows all have a risk; rows without one are NaN.

    The same as `below` and `like_length` give, without their (N, P): in a pool sorted by length the like rows of a
    row are neighbours, and all rows with the same neighbours are ranked among them at once. Memory grows with N + P.
    `on_done` is told how many rows have been compared.
    """
    value = np.full(len(risk), np.nan)
    order = np.argsort(pool_tokens, kind="stable")
    by_length, tokens = pool_risk[order], pool_tokens[order]  # rows without a length come last
    starts = np.searchsorted(tokens, n_tokens / LENGTH_FACTOR, "left")
    ends = np.searchsorted(tokens, n_tokens * LENGTH_FACTOR, "right")
    counts = np.where(n_tokens > 0, ends - starts, 0).astype(np.int64)  # NaN and zero are like nothing
    usable = np.flatnonzero((counts >= MIN_REFERENCE) & ~np.isnan(risk))
    n_done = len(risk) - len(usable)
    for rows in _same_window(usable, starts, ends):
        like = np.sort(by_length[starts[rows[0]] : ends[rows[0]]])
        lower, not_higher = np.searchsorted(like, risk[rows], "left"), np.searchsorted(like, risk[rows], "right")
        value[rows] = (lower + not_higher) / 2 / len(like)
        n_done += len(rows)
        on_done(n_done)
    return Percentiles(value, counts)


def _same_window(rows: Counts, starts: Counts, ends: Counts) -> list[Counts]:
    """The rows in groups of one window each."""
    if not len(rows):
        return []
    ordered = rows[np.lexsort((ends[rows], starts[rows]))]
    changes = (np.diff(starts[ordered]) != 0) | (np.diff(ends[ordered]) != 0)
    return np.split(ordered, np.flatnonzero(changes) + 1)
