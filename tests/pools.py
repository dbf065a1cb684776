"""Candidates made in a test, with labels, counts and texts, and specs written as a recipe writes them."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from curator.corpus.text import is_refusal
from curator.messages import dump_messages
from curator.recipe import (
    FilterSpec,
    Pool,
    RefusalRule,
    StrategySpec,
)
from curator.select.candidates import (
    Candidates,
    ColumnScores,
    Context,
    ListedIds,
    Rows,
)
from curator.select.filters import FilterResult
from curator.select.hygiene import hygiene_columns
from curator.select.select import (
    PoolSelection,
    SelectionRequest,
    filter_rows,
    select,
)

NAN = float("nan")
RULES: tuple[RefusalRule, ...] = ("v1", "v2")


def conversation_text(prompt: str, answer: str) -> str:
    """Canonical JSON of one question and its answer."""
    return dump_messages([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])


@dataclass(frozen=True)
class Row:
    """One candidate."""

    answer: str = "An answer"
    prompt: str = "A question"
    score: float = 0.0
    n_tokens: float = NAN
    labels: Mapping[str, str | None] = field(default_factory=dict)
    row_id: str | None = None

    @property
    def text(self) -> str:
        """Its canonical JSON."""
        return conversation_text(self.prompt, self.answer)

    @property
    def key(self) -> str:
        """Its id: the given one or a hash of the text."""
        return self.row_id or hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()


LABELS = ("domain", "language", "license", "source", "harm")


def candidates_of(rows: Sequence[Row]) -> Candidates:
    """These rows as candidates, which stand in the order of their ids."""
    rows = sorted(rows, key=lambda row: row.key)

    def messages(places: Rows) -> list[str]:
        return [rows[place].text for place in places.tolist()]

    heads = [" ".join(row.answer.split()[:10]) for row in rows]
    labels = {name: pl.Series([row.labels.get(name) for row in rows], dtype=pl.String) for name in LABELS}
    columns = {
        **{
            f"refusal_{rule}": pl.Series([is_refusal(head, rule) for head in heads], dtype=pl.Boolean) for rule in RULES
        },
        **hygiene_columns([row.text for row in rows]).to_dict(),
        **{name: label.cast(pl.Enum(label.unique().drop_nulls().sort())) for name, label in labels.items()},
        "n_chars": pl.Series([len(row.prompt) + len(row.answer) for row in rows], dtype=pl.Int32),
        "n_turns": pl.Series([2] * len(rows), dtype=pl.Int32),
        "n_response_tokens": pl.Series([row.n_tokens for row in rows], dtype=pl.Float64).fill_nan(None).cast(pl.Int32),
    }
    scores = ColumnScores(pl.Series([row.score for row in rows], dtype=pl.Float64).fill_nan(None))
    ids = ListedIds([row.key for row in rows])
    frame = pl.DataFrame(columns)
    return Candidates(len(rows), lambda *names: frame.select(names), ids, scores, messages)


def filtered(
    candidates: Candidates,
    filters: Sequence[FilterSpec],
    strategy: StrategySpec,
    exclude: Mapping[str, Collection[str]] | None = None,
    context: Context | None = None,
) -> FilterResult:
    """What the filters make of these rows under a strategy."""
    request = SelectionRequest(0, strategy=strategy, filters=tuple(filters), exclude=exclude or {})
    return filter_rows(candidates, request, context)


def chosen_ids(candidates: Candidates, selection: PoolSelection) -> list[str]:
    """Ids of the chosen rows, best first."""
    return candidates.ids.texts(selection.chosen)


def select_rows(
    candidates: Candidates, n_rows: int | None = None, context: Context | None = None, **options: Any
) -> PoolSelection:
    """`select` with the request's fields as options."""
    return select(candidates, SelectionRequest(n_rows, **options), context)


def around_of(task: Sequence[Row] = (), **evaluations: Sequence[str]) -> Context:
    """The user's rows and evaluation sets."""

    def texts() -> Iterator[list[str]]:
        return ([row.text for row in task[start : start + 3]] for start in range(0, len(task), 3))

    return Context(texts, evaluations)


def filters_of(*specs: object) -> tuple[FilterSpec, ...]:
    """The filters that a recipe means by these."""
    return Pool.model_validate({"corpus": "c", "filters": list(specs)}).filters


def strategy_of(spec: object) -> StrategySpec:
    """The strategy that a recipe means by this."""
    return Pool.model_validate({"corpus": "c", "strategy": spec, "allow_negative_control": True}).strategy
