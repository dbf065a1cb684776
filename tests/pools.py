"""Candidates made in a test, with labels, counts and texts, and specs written as a recipe writes them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curator.messages import dump_messages
from curator.recipe import FilterSpec, Pool, StrategySpec
from curator.select.columns import Coded, TextIds
from curator.select.filters import (
    Candidates,
    Indices,
    Surroundings,
    is_refusal,
)
from curator.select.ranking import ArrayScores

NAN = float("nan")


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


def plain_candidates(ids: Sequence[str], heads: Sequence[str], scores: Sequence[float], **more: Any) -> Candidates:
    """Candidates from plain lists; `heads` are the beginnings of their answers."""
    keys = TextIds(ids)
    return Candidates(
        ids=keys,
        scores=ArrayScores(np.array(scores, dtype=np.float64), keys.rank),
        refuses=lambda rule, rows=slice(None): np.array([is_refusal(head, rule) for head in heads], np.bool_)[rows],
        **more,
    )


def candidates_of(rows: Sequence[Row]) -> Candidates:
    """These rows as candidates."""

    def messages(places: Indices) -> list[str]:
        return [rows[place].text for place in places.tolist()]

    names = ("domain", "language", "license", "source", "harm")
    return plain_candidates(
        [row.key for row in rows],
        [" ".join(row.answer.split()[:10]) for row in rows],
        [row.score for row in rows],
        labels={name: Coded.of([row.labels.get(name) for row in rows]) for name in names},
        counts={
            "n_chars": np.array([len(row.prompt) + len(row.answer) for row in rows], dtype=np.float64),
            "n_turns": np.full(len(rows), 2.0),
            "n_response_tokens": np.array([row.n_tokens for row in rows], dtype=np.float64),
        },
        messages=messages,
    )


def around_of(task: Sequence[Row] = (), **evaluations: Sequence[str]) -> Surroundings:
    """The user's rows and evaluation sets."""

    def texts() -> Iterator[list[str]]:
        return ([row.text for row in task[start : start + 3]] for start in range(0, len(task), 3))

    return Surroundings(texts, evaluations)


def filters_of(*specs: object) -> tuple[FilterSpec, ...]:
    """The filters that a recipe means by these."""
    return Pool.model_validate({"corpus": "c", "filters": list(specs)}).filters


def strategy_of(spec: object) -> StrategySpec:
    """The strategy that a recipe means by this."""
    return Pool.model_validate({"corpus": "c", "strategy": spec, "allow_negative_control": True}).strategy
