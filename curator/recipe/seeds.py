"""Randomness as an argument: one seed in the recipe, child seeds by name, and counter hashes written out here.

Library random streams may change between versions and so are no basis for an id. Everything random in a mix
comes from BLAKE2b or from the integer mixing below; both give the same bits on every machine.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): increment and the two multipliers of its finaliser.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def child_seed(seed: int, name: str) -> int:
    """A seed of its own (64 bits) for the use called `name`, so that uses never share a stream."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest(), "big")


def hash_keys(ids: Sequence[str], seed: int, name: str) -> list[bytes]:
    """One pseudo-random 64-bit key for each id: BLAKE2b of seed, name and id. Order of `ids` does not matter."""
    base = hashlib.blake2b(f"{seed}|{name}|".encode(), digest_size=8)
    keys = []
    for item in ids:
        state = base.copy()
        state.update(item.encode())
        keys.append(state.digest())
    return keys


def permutation(n: int, seed: int) -> npt.NDArray[np.int64]:
    """A shuffle of 0..n-1, shape (n,): positions sorted by their counter hash.

    The hash is a bijection on 64-bit counters, so no two keys are equal and any sorting method gives one answer.
    """
    keys = np.arange(1, n + 1, dtype=np.uint64)
    keys *= _GOLDEN
    keys += np.uint64(seed)
    keys ^= keys >> np.uint64(30)
    keys *= _MIX_1
    keys ^= keys >> np.uint64(27)
    keys *= _MIX_2
    keys ^= keys >> np.uint64(31)
    return np.argsort(keys).astype(np.int64, copy=False)
