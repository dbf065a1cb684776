"""The response mask: which tokens are response tokens (method.md, "Words").

`counting.py` says the same rule once more, for the counts of many rows at once; `tests/curator/render/test_quick.py`
holds the two equal.

Which part of a conversation each token belongs to: before the user's text, in it, or between it and the answer.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curator.errors import RenderError
from curator.messages import Message
from curator.render.marks import Assembled
from curator.render.spans import Span

# Codes of `Rendered.token_classes`. OTHER is everything else: answers, further system turns, later turns' headers.
OTHER, PREFIX, QUERY, POSTFIX = 0, 1, 2, 3


def token_classes(
    offsets_T2: NDArray[np.int64], assembled: Assembled, messages: Sequence[Message], answers: dict[int, Span]
) -> NDArray[np.int8]:
    """The class of each token, (T,), from character offsets, (T, 2), and the spans of the assistant turns.

    PREFIX: all tokens before the first user text, a system turn included (method.md: `treft`). QUERY: tokens
    that share a character with a user's text. POSTFIX: tokens between a user's text and the answer that follows.
    A conversation without user turn has only a prefix, up to its first answer. Raises RenderError when the
    template hides where a user's text stands.
    """
    starts_T, ends_T = offsets_T2.T
    classes_T = np.zeros(len(starts_T), dtype=np.int8)
    queries = [_query(assembled, messages, index) for index, item in enumerate(messages) if item["role"] == "user"]
    first = min([span[0] for span in queries] or [span[0] for span in answers.values()] or [0])
    classes_T[ends_T <= first] = PREFIX
    for index, item in enumerate(messages):
        if item["role"] == "user" and index + 1 in answers:
            after = _query(assembled, messages, index)[1]
            classes_T[(starts_T >= after) & (ends_T <= answers[index + 1][0])] = POSTFIX
    for start, end in queries:
        classes_T[(ends_T > start) & (starts_T < end)] = QUERY
    return classes_T


def _query(assembled: Assembled, messages: Sequence[Message], index: int) -> Span:
    opens, closes = assembled.opens.get(index, []), assembled.closes.get(index, [])
    if len(opens) == len(closes) == 1:
        return opens[0], closes[0]
    raise RenderError(
        f"the chat template hides where the user's text of messages[{index}] stands: its tokens have no class",
        reason="span_not_found",
    )


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
