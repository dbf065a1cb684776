"""Where rows stand in a mix: our schedules beside the indices that `datasets` computes for the same counts."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from curator.mix.order import Allocation, schedule
from tests.bench.mixing.figures import Figure, figure
from tests.bench.mixing.peers import peer
from tests.bench.scoring.timing import interleaved, paired_ratio

RATIO = Fraction(1, 20)
Clock = Callable[[], float]


def interleave(n_task: int, repeats: int) -> Figure:
    """The index of a mix at 5 %: `datasets` draws each row's source at random, ours spreads safe rows exactly."""
    n_safe = int(RATIO * n_task)
    allocation = Allocation(n_task, (n_safe,), RATIO)
    task, safe = _sets(n_task, n_safe)
    shares = [n_task / (n_task + n_safe), n_safe / (n_task + n_safe)]
    ways = {
        "ours": lambda: schedule(allocation, "even", 0),
        "datasets": lambda: peer("datasets").interleave_datasets([task, safe], probabilities=shares, seed=0),
    }
    seconds = interleaved(ways, repeats)
    return figure(
        f"interleave index, {n_task + n_safe:,} rows at 5 %", "datasets interleave_datasets", 25.0,
        paired_ratio(seconds["datasets"], seconds["ours"]), seconds,
    )  # fmt: skip


def without_replacement(n_rows: int, repeats: int) -> Figure:
    """Every row of both sets once: `all_exhausted_without_replacement`; ours is checked to hold each row once."""
    n_task = round(n_rows / (1 + RATIO))
    n_safe = n_rows - n_task
    allocation = Allocation(n_task, (n_safe,), Fraction(n_safe, n_task))
    order = schedule(allocation, "even", 0)
    assert np.array_equal(np.sort(order), np.arange(-n_safe, n_task)), "each row once"
    task, safe = _sets(n_task, n_safe)
    shares = [n_task / n_rows, n_safe / n_rows]
    strategy = "all_exhausted_without_replacement"
    ways = {
        "ours": lambda: schedule(allocation, "even", 0),
        "ours, shuffled": lambda: schedule(allocation, "shuffle", 0),
        "datasets": lambda: peer("datasets").interleave_datasets(
            [task, safe], probabilities=shares, seed=0, stopping_strategy=strategy
        ),
    }
    seconds = interleaved(ways, repeats)
    return figure(
        f"without replacement, {n_rows:,} rows", f"datasets, {strategy}", 100.0,
        paired_ratio(seconds["datasets"], seconds["ours"]), seconds,
    )  # fmt: skip


def _sets(*sizes: int) -> list[Any]:
    datasets = peer("datasets")
    return [datasets.Dataset.from_dict({"row": np.arange(size)}) for size in sizes]
