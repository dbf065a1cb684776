"""Which part of a conversation each token belongs to: before the user's text, in it, or between it and the answer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curator.canonical import Message
from curator.errors import RenderError
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
