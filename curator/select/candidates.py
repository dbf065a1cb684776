"""What filters and strategies see of a pool: columns, and texts on demand. Values only: no files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from curator.recipe import RefusalRule
from curator.recipe.filters import TextPart
from curator.select.columns import (
    Coded,
    Codes,
    Ids,
    Indices,
    Mask,
    Numbers,
    Ranks,
)
from curator.select.minhash import Signatures
from curator.select.ranking import Scores

ALL_ROWS = slice(None)
CHUNK_ROWS = 8192  # rows whose texts are held at once


class Refuses(Protocol):
    """Which answers open like a refusal, by rule, of all rows or of some."""

    def __call__(self, rule: RefusalRule, rows: slice = ALL_ROWS, /) -> Mask:
        """A mask with the shape of `rows`."""
        ...


@dataclass(frozen=True)
class Columns:
    """Columns of a stretch of rows, all of shape (n_rows,); see `Candidates`."""

    n_rows: int
    refuses: Refuses
    labels: Mapping[str, Coded]
    counts: Mapping[str, Numbers]

    def part(self, start: int, end: int) -> "Columns":
        """The rows from `start` to `end`, without a copy."""
        rows = slice(start, end)
        labels = {name: Coded(label.codes[rows], label.values) for name, label in self.labels.items()}
        counts = {name: held[rows] for name, held in self.counts.items()}
        return Columns(end - start, lambda rule, _=ALL_ROWS: self.refuses(rule, rows), labels, counts)


@dataclass(frozen=True)
class Candidates:
    """The rows of one pool that may be drawn, column by column; all columns have shape (n_candidates,).

    `scores` are what the recipe ranks by, NaN where the row has no gap (a loss is missing). `refuses` tells by rule
    which rows' last answers open like a refusal. `labels` are text columns; `counts` are numbers (`n_chars`,
    `n_turns`, `n_response_tokens`), NaN where unknown. `messages` gives the canonical JSON texts of some rows;
    filters and strategies that read texts need it. `signatures` (curator.select.minhash) gives those of all rows
    where they are kept.
    """

    ids: Ids
    scores: Scores
    refuses: Refuses
    labels: Mapping[str, Coded] = field(default_factory=dict)
    counts: Mapping[str, Numbers] = field(default_factory=dict)
    messages: Callable[[Indices], list[str]] | None = None
    signatures: Callable[[TextPart], Signatures] | None = None

    @property
    def columns(self) -> Columns:
        """The columns alone, which can be cut into stretches."""
        return Columns(len(self), self.refuses, self.labels, self.counts)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def id_rank(self) -> Ranks:
        """Each row's place in the order of ids, shape (n_candidates,): what ties break on."""
        return self.ids.rank

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
    """What one filter made of the rows: code 0 stays, i > 0 stands for `reasons[i - 1]`.

    `codes` has the shape of the rows shown; those of rows that earlier rules left out mean nothing. `n_unjudged` of the
    others lack the label that the filter reads and passed for that reason.
    """

    reasons: tuple[str, ...]
    codes: Codes
    n_unjudged: int = 0
