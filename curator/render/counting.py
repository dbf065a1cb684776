"""Tokens of conversations counted without making their ids and masks, for rows whose template has a skeleton.

A row's text is its skeleton's constant texts with the contents between them, so where its answers stand follows from
lengths. Its tokens are those of its units, which are counted a batch of rows at once. Whatever is not plain (control
tokens in a content, further keys, a template that reads contents) is left to the renderer, whose counts are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator.render.settings import Part
from curator.render.skeletons import Shape, Skeleton, Skeletons, shape_of
from curator.render.spans import SpanFinder
from curator.render.tokenizer import GuardedTokenizer
from curator.render.units import Units

MAX_PLANS = 4_096  # then all are forgotten, as skeletons are

Messages = Sequence[Mapping[str, Any]]


class RowTokens(NamedTuple):
    """Tokens of one conversation, those that are scored and trained, and the parts that the template left out."""

    total: int
    response: int
    dropped: tuple[Part, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """What is the same for all rows of a shape. `answers`: of each, the place of its content, and the bytes after that
    content which belong to it."""

    skeleton: Skeleton
    first: bytes
    others: tuple[tuple[int, bytes], ...]  # the message whose content comes next, and the text after it
    answers: tuple[tuple[int, int], ...]


class QuickCounter:
    """Counts for one renderer, which `accepts` conversations or refuses them. Safe to share by threads."""

    def __init__(
        self,
        guard: GuardedTokenizer,
        spans: SpanFinder,
        skeletons: Skeletons,
        accepts: Callable[[Messages], bool],
    ) -> None:
        self._guard, self._spans, self._skeletons, self._accepts = guard, spans, skeletons, accepts
        self._plans: dict[tuple[Shape, tuple[int, ...]], _Plan | None] = {}

    def count(self, rows: Sequence[Messages], wanted: Sequence[Sequence[int]]) -> list[RowTokens | None]:
        """Counts of each row, of which the `wanted` messages are answers; None for one that is left to the renderer."""
        found: list[RowTokens | None] = [None] * len(rows)
        plans = {
            number: plan
            for number, (row, own) in enumerate(zip(rows, wanted, strict=True))
            if (plan := self._plan(row, tuple(own))) is not None
        }
        if not self._guard.is_plain("\n".join(item["content"] for number in plans for item in rows[number])):
            plans = {
                number: plan
                for number, plan in plans.items()
                if all(self._guard.is_plain(item["content"]) for item in rows[number])
            }
        if plans:
            counts = self._counted([rows[number] for number in plans], list(plans.values()))
            for number, count in zip(plans, counts, strict=True):
                found[number] = count
        return found

    def _plan(self, messages: Messages, wanted: tuple[int, ...]) -> _Plan | None:
        """How a row is counted; None where its template, roles or contents need the renderer."""
        if any(type(item.get("content")) is not str for item in messages):
            return None
        shape = shape_of(messages)
        if not shape:
            return None
        key = shape, wanted
        if key not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = self._made(messages, wanted)
        plan = self._plans.get(key)
        if plan is None or not plan.skeleton.fits([item["content"] for item in messages]):
            return None
        return plan

    def _made(self, messages: Messages, wanted: tuple[int, ...]) -> _Plan | None:
        skeleton = self._skeletons.of(messages)
        # A message that the template leaves out is for the renderer to judge.
        if skeleton is None or set(skeleton.places) != set(range(len(messages))):
            return None
        # What the renderer refuses for its template (turns in another order, answers under another role) goes by shape.
        if not self._accepts([{**message, "content": f"content {index}"} for index, message in enumerate(messages)]):
            return None
        first, *others = (text.encode() for text in skeleton.texts)
        answers = []
        for index in wanted:
            if skeleton.places.count(index) != 1:
                return None
            place = skeleton.places.index(index)
            n_bytes = self._spans.closing_bytes(skeleton.texts[place + 1], place + 2 == len(skeleton.texts))
            if n_bytes is None:
                return None
            answers.append((place, n_bytes))
        return _Plan(skeleton, first, tuple(zip(skeleton.places, others, strict=True)), tuple(answers))

    def _counted(self, rows: Sequence[Messages], plans: Sequence[_Plan]) -> Sequence[RowTokens | None]:
        pieces: list[bytes] = []
        begins: list[int] = []  # of each row, its first piece
        answers: list[tuple[int, int, int]] = []  # row, piece, bytes after it
        try:
            for number, (messages, plan) in enumerate(zip(rows, plans, strict=True)):
                contents = [item["content"].encode() for item in messages]
                begins.append(len(pieces))
                answers += [(number, len(pieces) + 1 + 2 * place, n_bytes) for place, n_bytes in plan.answers]
                pieces.append(plan.first)
                for index, text in plan.others:
                    pieces += (contents[index], text)
        except UnicodeError:  # half of a surrogate pair: the renderer names the row
            return [None] * len(rows)
        ends = np.cumsum([0, *map(len, pieces)])
        units = self._guard.units(b"".join(pieces), ends[[*begins, -1]]) if ends[-1] else None
        if units is None:
            return [None] * len(rows)
        answers_A3 = np.array(answers, dtype=np.int64).reshape(-1, 3)
        spans_A2 = np.stack([ends[answers_A3[:, 1]], ends[answers_A3[:, 1] + 1] + answers_A3[:, 2]], axis=1)
        controls_U = self._controls(units)
        before_P = np.concatenate(([0], np.cumsum(units.counts()[units.codes_P])))  # tokens before each unit
        n_controls_P = np.concatenate(([0], np.cumsum(controls_U[units.codes_P])))
        rows_at = np.searchsorted(units.cuts, ends[[*begins, -1]])
        bounds = before_P[rows_at]
        first_A, last_A, is_clear_A = _answer_tokens(units, before_P, controls_U, spans_A2)
        # A response token at position 0 is neither scored nor trained.
        lengths_A = last_A - np.maximum(first_A, bounds[answers_A3[:, 0]] + 1)
        response = np.zeros(len(rows), dtype=np.int64)
        np.add.at(response, answers_A3[:, 0], np.maximum(lengths_A, 0))
        n_controls = np.diff(n_controls_P[rows_at])
        is_clear = n_controls == np.array([plan.skeleton.n_controls for plan in plans])
        is_clear[answers_A3[~is_clear_A, 0]] = False
        return [
            RowTokens(total, own) if clear else None
            for total, own, clear in zip(np.diff(bounds).tolist(), response.tolist(), is_clear.tolist(), strict=True)
        ]

    def _controls(self, units: Units) -> NDArray[np.int64]:
        """Control tokens of each text of the units."""
        counts_U = units.counts()
        totals = np.concatenate(([0], np.cumsum(self._guard.is_control(units.table()[:, 0]))))
        ends = np.cumsum(counts_U)
        controls_U: NDArray[np.int64] = totals[ends] - totals[ends - counts_U]
        return controls_U


def _answer_tokens(
    units: Units, before_P: NDArray[np.int64], controls_U: NDArray[np.int64], spans_A2: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The first token of each span of bytes, the one after its last, and whether units alone tell (`mask` has the
    rule): the span ends where a unit does, and begins where one does or in one without control tokens."""
    starts_A, ends_A = spans_A2.T
    first_A = np.searchsorted(units.cuts, starts_A, side="right") - 1
    last_A = np.searchsorted(units.cuts, ends_A)
    inside_A = starts_A - units.cuts[first_A]
    codes_A = units.codes_P[np.minimum(first_A, len(units.codes_P) - 1)]
    is_clear_A = (units.cuts[last_A] == ends_A) & ((inside_A == 0) | (controls_U[codes_A] == 0))
    tokens_A = before_P[first_A]
    known = dict[tuple[int, int], int]()
    for answer in np.flatnonzero(inside_A):
        place, n_bytes = int(first_A[answer]), int(inside_A[answer])
        key = int(codes_A[answer]), n_bytes
        if key not in known:
            known[key] = units.tokens_until(place, n_bytes)
        tokens_A[answer] += known[key]
    return tokens_A, before_P[last_A], is_clear_A


__all__ = ["QuickCounter", "RowTokens"]
