"""Per-row risk: the sign-flipped gap against pool rows of like length (docs/method.md, "Audits"; ours). Pure."""

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


def percentiles(risk: Floats, n_tokens: Floats, pool_risk: Floats, pool_tokens: Floats) -> Percentiles:
    """Each row against the pool rows of like length. Pool rows all have a risk; rows without one are NaN."""
    value = np.full(len(risk), np.nan)
    counts = np.zeros(len(risk), dtype=np.int64)
    for start in range(0, len(risk), 1_000):  # (N, P) by blocks: memory stays flat
        part = slice(start, start + 1_000)
        like_NP = like_length(n_tokens[part], pool_tokens)
        counts[part] = like_NP.sum(axis=1)
        with np.errstate(invalid="ignore"):
            value[part] = (below(risk[part], pool_risk) * like_NP).sum(axis=1) / np.maximum(counts[part], 1)
    value[(counts < MIN_REFERENCE) | np.isnan(risk)] = np.nan
    return Percentiles(value, counts)
