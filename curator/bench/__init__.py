"""The scoring benchmark: the torch engine beside its peers, on the same rows, in one run.

Contenders take turns, round after round, and a ratio is the median of the ratios inside the rounds: on shared
cores the load changes from minute to minute, and both sides of one round see nearly the same.
"""

from curator.bench.request import BenchRequest
from curator.bench.run import run_bench

__all__ = ["BenchRequest", "run_bench"]
