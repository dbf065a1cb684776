"""How many safe rows, and where: a pure function of counts, recipe and seed (method.md section 4).

All arithmetic on amounts is exact: a ratio means the decimal the user wrote (0.05 is 1/20), so 5 % of 5,400 task
rows is 270 everywhere. Rounding rule: the total over all pools is rounded to the nearest row, halves up; the pools
share it by largest remainder, ties to the pool named first. `every_k` rounds down, since a last group of fewer
than k task rows has no safe row after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from curator.config import OrderName, Pool, Recipe
from curator.errors import RecipeError
from curator.seeds import child_seed, permutation

# How far 1/r may be from an integer k, relative: 0.333333 means every third, 0.3333 does not.
EVERY_K_TOLERANCE = Fraction(1, 10**6)

Schedule = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Allocation:
    """How many rows a mix has: `n_task` task rows and `n_safe[p]` safe rows of pool p.

    `ratio` is the safe rows asked for per task row, exact; `k` is set for the order `every_k` alone.
    """

    n_task: int
    n_safe: tuple[int, ...]
    ratio: Fraction
    k: int | None = None

    @property
    def n_safe_total(self) -> int:
        """Safe rows over all pools."""
        return sum(self.n_safe)


def exact(number: float) -> Fraction:
    """The decimal that was written, as a fraction: 0.05 is 1/20, not the nearest binary float."""
    return Fraction(repr(number))


def amounts(pools: Sequence[Pool], n_task: int) -> list[Fraction]:
    """Safe rows asked of each pool before rounding.

    `interleave_ratio` counts per task row, `rows` is absolute and `mix_share` is a share of the whole mix, which
    holds the other pools' rows too. Raises RecipeError when the shares leave no room for the task set.
    """
    share = sum((exact(pool.mix_share) for pool in pools if pool.mix_share is not None), Fraction())
    if share >= 1:
        raise RecipeError(
            f"mix_share adds up to {float(share):g} over the pools: below 1 there is room for the task set"
        )
    asked = [_own_amount(pool, n_task) for pool in pools]
    total = (n_task + sum(amount for amount in asked if amount is not None)) / (1 - share)
    return [
        exact(pool.mix_share or 0.0) * total if amount is None else amount
        for pool, amount in zip(pools, asked, strict=True)
    ]


def _own_amount(pool: Pool, n_task: int) -> Fraction | None:
    if pool.rows is not None:
        return Fraction(pool.rows)
    return None if pool.interleave_ratio is None else exact(pool.interleave_ratio) * n_task


def largest_remainder(shares: Sequence[Fraction], total: int) -> tuple[int, ...]:
    """Integers near `shares` that sum to `total`: floors, then one more for the largest remainders in turn.

    Each is the floor or the ceiling of its share when `total` is the rounded sum; ties go to the earlier share.
    """
    counts = [int(share // 1) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def allocate(recipe: Recipe, n_task: int) -> Allocation:
    """Rows of the mix for a task set of `n_task` rows.

    Raises RecipeError for an empty task set, and for `every_k` when 1/ratio is no integer (it names `even`).
    """
    if n_task < 1:
        raise RecipeError("the task set has no rows: there is nothing to mix safe rows into")
    shares = amounts(recipe.pools, n_task)
    asked = sum(shares, Fraction())
    if recipe.order == "every_k" and asked:
        k = min(_every_k(asked / n_task), n_task + 1)  # past the end is past the end, and fits 64 bits
        total = n_task // k
        # The pools keep their proportions of the total that `every_k` leaves.
        return Allocation(n_task, largest_remainder([s * total / asked for s in shares], total), asked / n_task, k)
    return Allocation(n_task, largest_remainder(shares, _round(asked)), asked / n_task)


def _round(value: Fraction) -> int:
    return int((value + Fraction(1, 2)) // 1)


def _every_k(ratio: Fraction) -> int:
    k = _round(1 / ratio)
    if k < 1 or abs(k * ratio - 1) > EVERY_K_TOLERANCE:
        raise RecipeError(
            f"order every_k needs one safe row after each k task rows, but {float(ratio):g} safe rows per task row is "
            f"one after each {float(1 / ratio):g}: use the order `even`, or the ratio {_neighbours(ratio)}"
        )
    return k


def _neighbours(ratio: Fraction) -> str:
    k = int(1 / ratio // 1)
    return f"1/{k + 1}" if k < 1 else f"1/{k} or 1/{k + 1}"


def schedule(allocation: Allocation, order: OrderName, seed: int) -> Schedule:
    """The order of a mix, shape (n_task + n_safe,): a value v >= 0 is task row v, v < 0 is safe row -(v + 1).

    Safe rows are numbered through all pools by `pool_of`. `every_k` and `even` keep the task rows' order; for
    `even`, after every k task rows |safe(k) - ratio * k| <= 1, whatever the ratio.
    """
    n_task, n_safe = allocation.n_task, allocation.n_safe_total
    if order == "shuffle":
        mixed = permutation(n_task + n_safe, child_seed(seed, "shuffle"))
        return np.where(mixed < n_task, mixed, n_task - 1 - mixed)
    return _interleave(_SAFE_BEFORE[order](allocation), n_safe)


def _even_counts(allocation: Allocation) -> Schedule:
    # round(i * n_safe / n_task) in integers: off the reached ratio by <= 1/2, and that is off the asked one by
    # <= 1/2 over the whole task set, which gives the bound of 1.
    n_task = allocation.n_task
    counts = np.arange(n_task, dtype=np.int64)
    counts *= 2 * allocation.n_safe_total
    counts += n_task
    counts //= 2 * n_task
    return counts


def _every_k_counts(allocation: Allocation) -> Schedule:
    return np.arange(allocation.n_task, dtype=np.int64) // (allocation.k or allocation.n_task + 1)


# For each order that keeps the task rows' order: how many safe rows stand before task row i, for i = 0..n_task-1.
_SAFE_BEFORE: dict[OrderName, Callable[[Allocation], Schedule]] = {"even": _even_counts, "every_k": _every_k_counts}


def _interleave(safe_before: Schedule, n_safe: int) -> Schedule:
    n_task = len(safe_before)
    order = np.empty(n_task + n_safe, dtype=np.int64)
    is_safe = np.ones(n_task + n_safe, dtype=np.bool_)
    task_rows = np.arange(n_task, dtype=np.int64)
    positions = safe_before + task_rows
    order[positions] = task_rows
    is_safe[positions] = False
    order[is_safe] = -1 - np.arange(n_safe, dtype=np.int64)
    return order


def pool_of(n_safe: Sequence[int]) -> npt.NDArray[np.int64]:
    """The pool that each safe row of a mix comes from, shape (sum(n_safe),).

    Pools take turns in proportion to their counts: row j of a pool with n rows stands at (j + 1/2) / n of the way,
    ties to the pool named first, so no stretch of the mix is left to one pool.
    """
    pools = np.repeat(np.arange(len(n_safe), dtype=np.int64), n_safe)
    midpoints = np.concatenate([(2 * np.arange(n) + 1) / (2 * n) for n in n_safe if n] or [np.empty(0)])
    order: npt.NDArray[np.int64] = np.lexsort((pools, midpoints))
    return pools[order]


def prefix_deviation(order: Schedule, ratio: Fraction) -> float:
    """The largest |safe(k) - ratio * k| after any k task rows, in rows; safe(k) counts up to the next task row."""
    is_task = order >= 0
    k = np.cumsum(is_task)
    ends = np.append(is_task[1:], True)  # a stretch ends where the next task row begins
    deviation = np.abs((np.arange(1, len(order) + 1) - k) - float(ratio) * k)[ends]
    return float(deviation.max(initial=0.0))
