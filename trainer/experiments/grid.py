"""A grid of resumable cells: each has a result file, written last, and a lock while a process works on it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from curator.console import say
from trainer.experiments.claims import claimed

C = TypeVar("C")


@dataclass(frozen=True)
class Turn(Generic[C]):
    """A cell that is to be run now. `lock` is a descriptor to hand to child processes."""

    cell: C
    lock: int
    number: int  # from 1, among those that had no result
    n_cells: int
    started_s: float  # time.monotonic() at which the first began

    def left_min(self) -> float:
        """Minutes for the cells after this one, if they take as long as those so far."""
        return (time.monotonic() - self.started_s) / self.number * (self.n_cells - self.number) / 60


def open_cells(
    cells: Sequence[C], result: Callable[[C], Path], name: Callable[[C], str], *, limit_min: float | None = None
) -> Iterator[Turn[C]]:
    """Each cell without a result file, in order, for the caller to run while this process holds its lock.

    Cells that another process works on are passed over; after `limit_min` minutes none is begun.
    """
    todo, started_s = [cell for cell in cells if not result(cell).exists()], time.monotonic()
    for number, cell in enumerate(todo, 1):
        elapsed_min = (time.monotonic() - started_s) / 60
        if limit_min is not None and elapsed_min >= limit_min:
            say(f"stopped after {elapsed_min:.0f} minutes, as requested; {len(todo) - number + 1} cells are left")
            return
        path = result(cell)
        with claimed(path.with_name(f".{path.stem}.lock")) as lock:
            if lock is None:
                say(f"{name(cell)}: another process has it")
            elif not path.exists():
                yield Turn(cell, lock, number, len(todo), started_s)
