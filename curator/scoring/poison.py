"""Rows that an engine cannot score: found by halving, tried again alone, and marked with a reason.

An engine's own errors and running out of memory are taken for a row's fault only while the engine still scores
another row: an engine that fails on everything ends the run instead of marking everything.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from curator.errors import BallastError, ScoringError
from curator.scoring.engine import Engine, OnRows, RowLoss

if TYPE_CHECKING:
    from curator.render import Rendered

_MAX_REASON = 200  # characters of an engine's message that are kept
_N_PROBE = 2  # tokens of the row that asks whether the engine lives, when none was scored before


class EngineDiedError(ScoringError):
    """The engine scored rows, met one, and now fails on those it scored before."""


class Tolerant:
    """An engine that answers for each row with a loss, or with the reason why it has none."""

    def __init__(self, engine: Engine, on_rows: OnRows | None = None) -> None:
        self._engine, self._on_rows = engine, on_rows
        self._shortest: Rendered | None = None  # a row known to be fine
        self._reported = self._credit = 0

    def score(self, rows: "Sequence[Rendered]") -> list[RowLoss | str]:
        """One outcome for each row, in the order given.

        Errors of ours (a wrong tokenizer, a store that is gone) are raised as they are; EngineDiedError or
        ScoringError when the engine fails on other rows too.
        """
        if not rows:
            return []
        losses, reason = self._try(rows)
        if losses is not None:
            return list(losses)
        if len(rows) > 1:
            half = len(rows) // 2
            return [*self.score(rows[:half]), *self.score(rows[half:])]
        again, reason = self._try(rows)
        if again is not None:
            return list(again)
        self._require_life(rows[0], reason)
        self._report(1, rows[0].n_tokens)
        return [reason]

    def _try(self, rows: "Sequence[Rendered]") -> tuple[list[RowLoss] | None, str]:
        """Losses, or why there are none. Only the error's text is kept: its frames hold the batch's memory."""
        self._reported = 0
        try:
            losses = self._engine.score(rows, self._report)
        except BallastError:
            raise
        except Exception as error:
            self._credit += self._reported
            return None, _reason(error)
        shortest = min(rows, key=lambda row: row.n_tokens)
        if self._shortest is None or shortest.n_tokens < self._shortest.n_tokens:
            self._shortest = shortest
        return losses, ""

    def _require_life(self, row: "Rendered", reason: str) -> None:
        probe = self._shortest or _probe(row)
        try:
            self._engine.score([probe])
        except Exception as error:
            kind = EngineDiedError if self._shortest is not None else ScoringError
            raise kind(f"the engine fails on rows it should score; first {reason}, then {_reason(error)}") from None

    def _report(self, n_rows: int, n_tokens: int) -> None:
        """Pass progress on, without counting rows again that a failed call had finished."""
        self._reported += n_rows
        known = min(self._credit, n_rows)
        self._credit -= known
        if self._on_rows is not None and n_rows > known:
            self._on_rows(n_rows - known, n_tokens)


def _probe(row: "Rendered") -> "Rendered":
    """The row's first two tokens, the second of them to be scored."""
    mask = row.response_mask[:_N_PROBE].copy()
    mask[-1] = True
    return replace(row, input_ids=row.input_ids[:_N_PROBE], response_mask=mask)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    kind = (
        "out of memory" if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ else "engine error"
    )
    return f"{kind}: {type(error).__name__}: {text}"[:_MAX_REASON]
