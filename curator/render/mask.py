"""The response mask: the one definition of which tokens are response tokens (method.md section 1)."""

import numpy as np
from numpy.typing import NDArray


def response_mask(
    starts_N: NDArray[np.int64],
    ends_N: NDArray[np.int64],
    is_control_N: NDArray[np.bool_],
    spans_S2: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Tokens that share a character with a span, (N,). Tokens are in the order of the text, of one or of many rows.

    `starts_N` and `ends_N` are the first character of each token and one past its last, spans likewise. A control
    token that begins before the span is the turn's header even where it swallows the white space after it (rstrip),
    and so stays out.
    """
    first_S = np.searchsorted(ends_N, spans_S2[:, 0], side="right")  # the first token that ends inside, or after
    last_S = np.searchsorted(starts_N, spans_S2[:, 1], side="left")  # the first one that begins after the span
    begun_S = np.searchsorted(starts_N, spans_S2[:, 0], side="left")  # the first one that begins inside, or after
    begins_N = _between(np.maximum(first_S, begun_S), last_S, len(starts_N))
    reaches_N = _between(first_S, np.minimum(begun_S, last_S), len(starts_N))
    return begins_N | (reaches_N & ~is_control_N)


def _between(first_S: NDArray[np.int64], last_S: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Positions 0 to n - 1 within any of the ranges [first, last)."""
    edges = np.zeros(n + 1, dtype=np.int64)
    np.add.at(edges, first_S, 1)
    np.add.at(edges, np.maximum(first_S, last_S), -1)
    return np.cumsum(edges[:-1]) > 0
