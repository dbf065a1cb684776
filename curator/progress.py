"""What a command says while it works: lines on stdout, progress with rate and time left on stderr."""

import os
import sys
import time
from types import TracebackType
from typing import Any, Self

QUIET_S = 2.0  # work shorter than this shows nothing
PLAIN_EVERY_S = 10.0  # between two lines when stderr is a file or a pipe


def say(text: str = "") -> None:
    """Write one line to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Progress:
    """Progress of one piece of work: `with Progress(total, "rows", "scoring") as bar: bar.advance(5)`.

    `total` counts in `unit` and may be None when unknown. On a terminal it is a bar; otherwise one plain line
    every ten seconds, the first after two. BALLAST_PROGRESS=0 silences both.
    """

    def __init__(self, total: int | None, unit: str, label: str) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.done = 0
        self._fields: dict[str, object] = {}
        self._bar: Any = None
        self._enabled = os.environ.get("BALLAST_PROGRESS", "1") != "0"

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._next_line = self._started + QUIET_S
        self._said = False
        if self._enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                unit=self.unit if self.unit == "B" else f" {self.unit}",
                unit_scale=self.unit == "B",
                desc=self.label,
                delay=QUIET_S,
                dynamic_ncols=True,
            )
        return self

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more units; `fields` are shown beside the rate and stay until they change."""
        self.done += n
        self._fields.update(fields)
        if self._bar is not None:
            if fields:
                self._bar.set_postfix(self._fields, refresh=False)
            self._bar.update(n)
        elif self._enabled and time.monotonic() >= self._next_line:
            self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and self._said and kind is None:
            self._line()

    def _line(self) -> None:
        now = time.monotonic()
        self._next_line, self._said = now + PLAIN_EVERY_S, True
        sys.stderr.write(progress_line(self, now - self._started) + "\n")
        sys.stderr.flush()


def progress_line(progress: Progress, elapsed_s: float) -> str:
    """One plain line: label, done of total, rate per second, time left in seconds and the extra fields."""
    rate = progress.done / elapsed_s if elapsed_s > 0 else 0.0
    parts = [f"{progress.label}: {_count(progress.done, progress.unit)}"]
    if progress.total is not None:
        parts[0] += f" of {_count(progress.total, progress.unit)}"
    parts.append(f"{_count(rate, progress.unit)}/s")
    if progress.total is not None and rate > 0:
        parts.append(f"{max(progress.total - progress.done, 0) / rate:.0f} s left")
    parts += [f"{name} {value}" for name, value in progress._fields.items()]
    return ", ".join(parts)


def _count(number: float, unit: str) -> str:
    if unit == "B":
        return f"{number / 1e6:.1f} MB"
    return f"{number:,.0f} {unit}" if number >= 10 or number == int(number) else f"{number:.2f} {unit}"
