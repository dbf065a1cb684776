"""The mixing benchmark: each piece of work beside the peer that people use for it, in turns, in one run.

`run.run_bench_mix` gives the figures; what is ours is the product's own code, and each pair is
checked to give the same.
"""

from tests.bench.mixing.request import MixBenchRequest

__all__ = ["MixBenchRequest"]
