"""Benchmarks: ours beside its peers on the same rows, in one run (`run.run_bench` times scoring).

Contenders take turns, round after round, and a ratio is the median of the ratios inside the rounds: on shared
cores the load changes from minute to minute, and both sides of one round see nearly the same.
"""

from tests.bench.scoring.request import BenchRequest

__all__ = ["BenchRequest"]
