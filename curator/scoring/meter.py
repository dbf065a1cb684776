"""What a run shows while it works: rows, tokens, tokens per second, time left and cost so far."""

import time
from collections.abc import Callable

from curator.progress import Progress

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
