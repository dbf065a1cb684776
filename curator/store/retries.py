"""Repeated attempts with growing pauses, for a server that is busy or away for a moment.

The client of the HTTP service, the vLLM scoring engine and the chat endpoint each decide what may be tried again;
how often and after which pause is decided here. Requests to object storage are repeated by their own library.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class TryAgainError(Exception):
    """Raised by an attempt that may be repeated: the error to raise when it was the last, and the pause to make.

    `wait_s` is the pause in seconds that the server asked for; None takes the growing one.
    """

    def __init__(self, error: Exception, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


@dataclass(frozen=True)
class Retries:
    """`n_attempts` in all; the pause begins at `first_wait_s`, doubles, and is at most `max_wait_s` seconds.

    `jitter` spreads the pauses of many clients: each is multiplied by a random factor from 0.5 to 1.5.
    """

    n_attempts: int
    first_wait_s: float
    max_wait_s: float
    jitter: bool = False
    sleep: Callable[[float], None] = time.sleep

    def run(self, attempt: Callable[[], T]) -> T:
        """What the first good attempt returns; raises the last one's error."""
        for number in range(self.n_attempts):
            try:
                return attempt()
            except TryAgainError as again:
                if number + 1 == self.n_attempts:
                    raise again.error from again.__cause__
                self.sleep(self._wait_s(number, again.wait_s))
        raise AssertionError("at least one attempt is made")

    def _wait_s(self, number: int, asked_s: float | None) -> float:
        growing_s = self.first_wait_s * 2**number * (0.5 + random.random() if self.jitter else 1.0)
        return min(growing_s if asked_s is None else asked_s, self.max_wait_s)


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header; None without one, or where it is a date."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
