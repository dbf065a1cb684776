"""The rows of a benchmark: the first conversations of a chat file that can be scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curator.corpus.formats import Row, read_rows
from curator.errors import BadInputError, RenderError
from curator.messages import Message
from curator.render import Rendered, Renderer


@dataclass(frozen=True)
class BenchRow:
    """One conversation rendered twice: every assistant turn masked in, and the last one alone."""

    messages: list[Message]
    whole: Rendered
    last: Rendered


def bench_rows(file: Path, renderer: Renderer, n: int, max_length: int) -> list[BenchRow]:
    """The first `n` conversations of at most `max_length` tokens with a response; BadInputError when too few."""
    found: list[BenchRow] = []
    for row in _fitting(file, renderer, max_length):
        found.append(row)
        if len(found) == n:
            return found
    raise BadInputError(f"{file} has {len(found)} conversations that fit into {max_length} tokens; {n} are asked")


def _fitting(file: Path, renderer: Renderer, max_length: int) -> Iterator[BenchRow]:
    for item in read_rows(file):
        if not isinstance(item, Row):
            continue
        try:
            whole, last = renderer.render(item.messages), renderer.render(item.messages, "last")
        except RenderError:
            continue
        if whole.n_tokens <= max_length and last.loss_mask.any():
            yield BenchRow(item.messages, whole, last)


def context_and_answer(row: Rendered) -> tuple[list[int], list[int]]:
    """A row with one answer as the two token lists that lm-evaluation-harness takes."""
    positions = np.flatnonzero(row.response_mask)
    start, end = int(positions[0]), int(positions[-1]) + 1
    ids = row.input_ids.tolist()
    return ids[:start], ids[start:end]


def n_response_tokens(rows: Sequence[Rendered]) -> int:
    """Response tokens that have a logit before them."""
    return sum(row.n_response_tokens for row in rows)
