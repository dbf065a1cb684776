"""Rendering many rows by several processes, in their order, where this process alone would need long."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from curator.render import Renderer
from trainer.mixes import TrainRow

PARALLEL_FROM_S = 20.0  # of a processor for rendering all rows; to start others takes each about a second of one
# Rows that this process renders before it decides, and those of them, the last ones, by which it does: the first
# thousands are several times slower, while most words are new to the renderer.
SAMPLE_ROWS, TIMED_ROWS = 10_000, 1_000
CHUNK_ROWS = 1_000  # rows that a process renders at a time
MAX_PROCESSES = 16

T = TypeVar("T")

_renderer: list[Renderer] = []  # of a worker process


def n_processes(n_rows: int, row_s: float) -> int:
    """How many processes render `n_rows` rows of `row_s` seconds: 1, or where that is long one a core."""
    return 1 if n_rows * row_s < PARALLEL_FROM_S else min(len(os.sched_getaffinity(0)), MAX_PROCESSES)


def in_order(
    work: Callable[[list[TrainRow], Renderer, object], T],
    rows: Iterable[TrainRow],
    folder: Path,
    settings: object,
    n_workers: int,
) -> Iterator[T]:
    """`work(chunk, renderer, settings)` for every chunk of rows, by `n_workers` processes, in the rows' order.

    Each process reads the renderer of `folder` once. No more than two chunks a process wait at a time, so rows are read
    as they are needed.
    """
    context = get_context("spawn")  # a fork would copy the threads' locks of Arrow and of the tokenizer
    with ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start, initargs=(folder,)) as pool:
        waiting: deque[Future[T]] = deque()
        left = iter(rows)
        try:
            while chunk := list(islice(left, CHUNK_ROWS)):
                waiting.append(pool.submit(_run, work, chunk, settings))
                if len(waiting) >= 2 * n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leading process's to answer
    _renderer[:] = [Renderer.from_folder(folder)]


def _run(work: Callable[[list[TrainRow], Renderer, object], T], chunk: list[TrainRow], settings: object) -> T:
    return work(chunk, _renderer[0], settings)
