"""Interleaved timing: every contender once a round, in an order that turns, medians at the end."""

import time
from collections.abc import Callable, Mapping
from statistics import median

Seconds = dict[str, list[float]]


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    on_done: Callable[[str], None] = lambda name: None,
) -> Seconds:
    """Seconds of each contender by round. The order turns by one each round, so that none always follows another."""
    names = list(contenders)
    seconds: Seconds = {name: [] for name in names}
    for number in range(repeats):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            started = clock()
            contenders[name]()
            seconds[name].append(clock() - started)
            on_done(name)
    return seconds


def paired_ratio(over: list[float], under: list[float]) -> float:
    """Median over rounds of `over / under`, both of one round."""
    return median(one / other for one, other in zip(over, under, strict=True))
