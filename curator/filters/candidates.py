"""What filters and strategies see of a pool: columns, and texts on demand. Values only: no files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CHUNK_ROWS = 8192  # rows whose texts are held at once


@dataclass(frozen=True)
class Candidates:
    """The rows of one pool that may be drawn, column by column; all columns have shape (n_candidates,).

    `heads` are the first ten words of the last answer; `score` is what the recipe ranks by, NaN where the row has
    no gap (a loss is missing). `labels` are text columns, None where a row has no label; `counts` are numbers (
    `n_chars`, `n_turns`, `n_response_tokens`), NaN where unknown. `messages` gives the canonical JSON texts of some
    rows; filters and strategies that read texts need it.
    """

    ids: Sequence[str]
    heads: Sequence[str]
    score: Floats
    labels: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    counts: Mapping[str, Floats] = field(default_factory=dict)
    messages: Callable[[Indices], list[str]] | None = None

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.heads) == len(self.score)

    @cached_property
    def id_rank(self) -> Indices:
        """Each row's place in the order of ids, shape (n_candidates,): what ties break on."""
        if all(one < two for one, two in pairwise(self.ids)):
            return np.arange(len(self.ids))
        ranks = np.empty(len(self.ids), dtype=np.int64)
        ranks[sorted(range(len(self.ids)), key=self.ids.__getitem__)] = np.arange(len(self.ids))
        return ranks

    def texts(self, rows: Indices) -> Iterator[list[str]]:
        """The canonical JSON of these rows in their order, chunk by chunk."""
        assert self.messages is not None, "texts are needed and were not given"
        for start in range(0, len(rows), CHUNK_ROWS):
            yield self.messages(rows[start : start + CHUNK_ROWS])


@dataclass(frozen=True)
class Surroundings:
    """What lies outside the pool: the user's rows, and evaluation prompts by the name of their set.

    `task_texts()` starts a pass over the canonical JSON of the user's rows, batch by batch.
    """

    task_texts: Callable[[], Iterator[list[str]]] = lambda: iter(())
    evaluations: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What one filter made of the rows that it was shown: code 0 stays, i > 0 stands for `reasons[i - 1]`.

    `codes` has their shape; `n_unjudged` rows lack the label that the filter reads and passed for that reason.
    """

    reasons: tuple[str, ...]
    codes: npt.NDArray[np.int16]
    n_unjudged: int = 0
