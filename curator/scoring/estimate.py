"""What a run would cost: tokens from rendered rows, hours from a short measured burst; nothing is stored."""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from curator.recipe.seeds import hash_keys
from curator.scoring.blocks import corpus_rows
from curator.scoring.check import n_check_rows
from curator.scoring.faults import FaultTolerantEngine
from curator.scoring.parts import ScoreRow
from curator.scoring.worker import SECONDS_PER_HOUR, cost

if TYPE_CHECKING:
    from curator.render import Rendered
    from curator.scoring.run import ScoreRun

N_RENDERED = 2_000  # rows rendered to count tokens; a larger corpus is extrapolated from them
BURST_S = 10.0
_SEED_NAME = "dry-run"


@dataclass(frozen=True)
class Estimate:
    """What is to do and what it would take. `n_tokens` counts tokens of rows that can be scored, in one pass.

    `hours` covers `passes` passes with their checks and leaves out loading; `price` is null without a rate.
    """

    n_rows: int
    n_rows_rendered: int
    exact: bool
    n_rows_to_score: int
    n_tokens: int
    n_tokens_checked: int
    passes: int
    tokens_per_s: float | None
    burst_s: float
    hours: float | None
    price: float | None

    def document(self) -> dict[str, Any]:
        """As printed by `--json`."""
        return asdict(self)


def estimate(
    run: "ScoreRun", *, passes: int = 1, burst_s: float = BURST_S, clock: Callable[[], float] = time.monotonic
) -> Estimate:
    """Render up to 2,000 of the missing rows, score some for about `burst_s` seconds, and extrapolate."""
    missing = sorted(run.missing())
    keyed = zip(hash_keys(missing, 0, _SEED_NAME), missing, strict=True)
    chosen = {example_id for _, example_id in heapq.nsmallest(N_RENDERED, keyed)}
    found = [run.worker.render(*row) for row in corpus_rows(run.store, run.corpus, chosen)]
    rows = [row for row in found if not isinstance(row, ScoreRow)]
    scale = len(missing) / max(len(found), 1)
    n_scored, n_tokens = round(scale * len(rows)), round(scale * sum(row.n_tokens for row in rows))
    n_again = n_check_rows(run.request.check_rows, n_scored) * run.n_check_passes
    n_tokens_checked = round(n_again * n_tokens / max(n_scored, 1))
    rate, seconds = _burst(run, rows, burst_s, clock) if rows else (None, 0.0)
    hours = passes * (n_tokens + n_tokens_checked) / rate / SECONDS_PER_HOUR if rate else None
    price = run.request.price_per_hour
    return Estimate(
        len(missing), len(found), len(found) == len(missing), n_scored, n_tokens, n_tokens_checked, passes, rate,
        seconds, hours, cost(hours * SECONDS_PER_HOUR, price) if hours is not None and price is not None else None,
    )  # fmt: skip


def _burst(
    run: "ScoreRun", rows: "Sequence[Rendered]", burst_s: float, clock: Callable[[], float]
) -> tuple[float | None, float]:
    """Tokens per second over ever larger groups of rows until the time is up; the first rows only warm up."""
    engine = FaultTolerantEngine(run.engine.get())
    engine.score(rows[:2])
    n_tokens, at, size, started = 0, 0, 8, clock()
    while at < len(rows) and clock() - started < burst_s / 2:
        group = rows[at : at + size]
        engine.score(group)
        n_tokens += sum(row.n_tokens for row in group)
        at, size = at + size, 2 * size
    seconds = clock() - started
    return (n_tokens / seconds if seconds > 0 else None), seconds
