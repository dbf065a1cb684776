"""Exact fractions and whole shares of them."""

from collections.abc import Sequence
from fractions import Fraction


def exact(number: float) -> Fraction:
    """The decimal that was written, as a fraction: 0.05 is 1/20, not the nearest binary float."""
    return Fraction(repr(number))


def largest_remainder(shares: Sequence[Fraction], total: int) -> tuple[int, ...]:
    """Integers near `shares` that sum to `total`: floors, then one more for the largest remainders in turn.

    Each is the floor or the ceiling of its share when `total` is the rounded sum; ties go to the earlier share.
    """
    counts = [int(share // 1) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)
