"""The work on one block: render its rows, score those that can be, write the part.

`Meter` counts what a run shows while it works: rows, tokens per second, time left and cost so far.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curator.console import Progress
from curator.errors import ScoringError
from curator.scoring.blocks import Block
from curator.scoring.engines.base import Engine, RowLoss
from curator.scoring.faults import Attempt, EngineDiedError, FaultTolerantEngine
from curator.scoring.parts import ScoreRow, part_name, render_row, scored_row, write_part
from curator.scoring.request import ScoreRequest
from curator.store.store import Store

if TYPE_CHECKING:
    from curator.render import Rendered, Renderer


SECONDS_PER_HOUR = 3_600.0


def cost(seconds: float, price_per_hour: float) -> float:
    """Price of machine time, in the unit of `price_per_hour`."""
    return seconds / SECONDS_PER_HOUR * price_per_hour


class Meter:
    """Counts tokens of finished rows for a progress line; the clock starts when it is made.

    `price_per_hour` None shows no cost.
    """

    def __init__(self, price_per_hour: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.n_tokens = 0
        self._price = price_per_hour
        self._clock = clock
        self._started = clock()
        self._bar: Progress | None = None

    def show(self, bar: Progress) -> None:
        """Count into this progress line from now on."""
        self._bar = bar

    def rows(self, n_rows: int, n_tokens: int) -> None:
        """So many rows are finished, with so many tokens run through the model (0: there was none to run)."""
        self.n_tokens += n_tokens
        if self._bar is not None:
            self._bar.advance(n_rows, **self.fields())

    def fields(self) -> dict[str, str]:
        """Tokens, tokens per second and cost so far, as text."""
        seconds = max(self._clock() - self._started, 1e-6)
        shown = {"tokens": f"{self.n_tokens:,}", "tokens_per_s": f"{self.n_tokens / seconds:,.0f}"}
        if self._price is not None:
            shown["cost"] = f"{cost(seconds, self._price):.2f}"
        return shown


@dataclass(frozen=True)
class BlockDone:
    """A block whose part is written: its rows, those with a loss, the tokens that went through the model, the rows that
    failed, with reasons, and the parts of messages that were left out (one a row and part)."""

    n_rows: int
    n_scored: int
    n_tokens: int
    failures: tuple[str, ...]
    dropped: tuple[str, ...] = ()


class LazyEngine:
    """An engine that is loaded when it is first needed, checked against the identity it will be recorded under."""

    def __init__(self, factory: Callable[[], Engine], request: ScoreRequest) -> None:
        self._factory, self._request = factory, request
        self._engine: Engine | None = None

    def get(self) -> Engine:
        """The loaded engine with the request's adapter; ScoringError when it is not the requested engine."""
        if self._engine is None:
            engine, request = self._factory(), self._request
            found = (engine.name, engine.version, engine.dtype)
            asked = (request.engine, request.engine_version, request.dtype)
            if found != asked:
                raise ScoringError(f"engine {found} loaded, the scorer's identity says {asked}")
            engine.use_adapter(_absolute(request.adapter_dir))
            self._engine = engine
        return self._engine

    def close(self) -> None:
        """Free the model, if one was loaded."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


@dataclass(frozen=True)
class ScorerTask:
    """What every worker of one scorer has in common: the folder that it fills, the request, and the longest row that is
    scored, in tokens."""

    folder: str
    request: ScoreRequest
    window: int


class BlockScorer:
    """Scores blocks of one scorer into its folder; several may work on one folder at a time.

    `name` stands in the notes of `attempts`, for whoever started this worker and may have to declare it dead.
    """

    def __init__(
        self,
        store: Store,
        task: ScorerTask,
        renderer: "Renderer",
        engine: LazyEngine,
        meter: Meter,
        name: str | None = None,
    ) -> None:
        self.store, self.task, self.name = store, task, name
        self.renderer, self.engine, self.meter = renderer, engine, meter
        self._tolerant: FaultTolerantEngine | None = None

    def score(self, block: Block) -> BlockDone:
        """Write the block's part.

        A row that the engine cannot score gets its reason; see `faults` for the rest.
        """
        done = self._score(block, Attempt(self.store, self.task.folder, block.ids, self.name), give_way=False)
        assert done is not None
        return done

    def score_unless_taken(self, block: Block) -> BlockDone | None:
        """The same, or None where another process is at work on the block."""
        attempt = Attempt(self.store, self.task.folder, block.ids, self.name)
        return None if attempt.taken else self._score(block, attempt, give_way=True)

    def has_part(self, block: Block) -> bool:
        """Whether the block's part is there."""
        return self.store.exists(f"{self.task.folder}/{part_name(block.ids)}")

    def _score(self, block: Block, attempt: Attempt, give_way: bool) -> BlockDone | None:
        pairs = zip(block.ids, block.messages, strict=True)
        outcomes = {example_id: self.render(example_id, messages) for example_id, messages in pairs}
        rendered = {key: row for key, row in outcomes.items() if not isinstance(row, ScoreRow)}
        if rendered:
            if self._tolerant is None:
                self._tolerant = FaultTolerantEngine(self.engine.get(), self.meter.rows)
            attempt.begin()  # after loading: what dies there is no row's fault
            if give_way and attempt.late():
                attempt.settle()
                return None
        n_before = self.meter.n_tokens
        self.meter.rows(len(outcomes) - len(rendered), 0)
        losses = self._losses(attempt, self._tolerant, rendered) if self._tolerant and rendered else {}
        rows = [
            row if isinstance(row, ScoreRow) else scored_row(key, row, losses[key]) for key, row in outcomes.items()
        ]
        if not self.has_part(block):  # the first copy stays: what was recorded of it must hold
            write_part(self.store, self.task.folder, rows)
        if rendered:
            attempt.done()
        failures = tuple(f"{row.example_id}: {row.reason}" for row in rows if row.status == "failed")
        n_scored = sum(row.status == "scored" for row in rows)
        dropped = tuple(part for row in rendered.values() for part in row.dropped)
        return BlockDone(len(rows), n_scored, self.meter.n_tokens - n_before, failures, dropped)

    def _losses(
        self, attempt: Attempt, tolerant: FaultTolerantEngine, rows: "dict[str, Rendered]"
    ) -> dict[str, RowLoss | str]:
        try:
            if not attempt.careful:
                return dict(zip(rows, tolerant.score(list(rows.values())), strict=True))
            return {key: self._alone(attempt, tolerant, key, row) for key, row in rows.items()}
        except EngineDiedError:
            attempt.died()  # this row killed the engine, as others kill the process
            raise
        except BaseException:
            attempt.settle()
            raise

    def _alone(self, attempt: Attempt, tolerant: FaultTolerantEngine, key: str, row: "Rendered") -> RowLoss | str:
        reason = attempt.deadly(key)
        if reason is not None:
            self.meter.rows(1, row.n_tokens)
            return reason
        attempt.begin(key)
        return tolerant.score([row])[0]

    def render(self, example_id: str, messages: str) -> "Rendered | ScoreRow":
        """The row's tokens and mask, or its finished outcome where it can have no loss."""
        return render_row(self.renderer, example_id, messages, self.task.request.mask_rule, self.task.window)


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path is not None else None
