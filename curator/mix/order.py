"""Where the safe rows of a mix stand: a pure function of counts, order and seed (method.md, "Amount and order").

Amounts are per epoch, and each epoch is a whole mix by itself: the same task and safe rows at the same places of the
order's pattern, so what an order promises holds inside every epoch. With `epoch_order: same` every epoch repeats the
first row for row. With `own` the first epoch is that of a one-epoch mix and every later one has task rows, and the
safe rows of each pool, in a seeded order of its own (for `shuffle`: a shuffle of its own).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from curator.errors import RecipeError
from curator.recipe.base import EpochOrder, OrderName
from curator.recipe.seeds import child_seed, permutation

# How far 1/r may be from an integer k (or B r / (1 + r) from an integer m), relative: 0.333333 means every third,
# 0.3333 does not.
INTEGER_TOLERANCE = Fraction(1, 10**6)

Schedule = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """The order `per_batch`: `n_safe` safe rows in every batch of `n_rows` rows."""

    n_rows: int
    n_safe: int

    @property
    def n_task(self) -> int:
        """Task rows of a full batch."""
        return self.n_rows - self.n_safe


@dataclass(frozen=True)
class Allocation:
    """How many rows an epoch of a mix has: `n_task` task rows and `n_safe[p]` safe rows of pool p.

    `ratio` is the requested safe rows per task row, exact; `k` is set for the order `every_k` alone, `batch` for
    `per_batch` alone.
    """

    n_task: int
    n_safe: tuple[int, ...]
    ratio: Fraction
    k: int | None = None
    batch: Batch | None = None
    epochs: int = 1
    epoch_order: EpochOrder = "same"

    @property
    def n_safe_total(self) -> int:
        """Safe rows of one epoch over all pools."""
        return sum(self.n_safe)

    @property
    def n_epoch_rows(self) -> int:
        """Rows of one epoch."""
        return self.n_task + self.n_safe_total

    @property
    def n_rows(self) -> int:
        """Rows of the whole mix."""
        return self.epochs * self.n_epoch_rows


def round_half_up(value: Fraction) -> int:
    """The nearest integer, halves up."""
    return int((value + Fraction(1, 2)) // 1)


def derive_k(ratio: Fraction) -> int:
    """Task rows before each safe row; raises RecipeError naming `even` when 1/ratio is not an integer."""
    k = round_half_up(1 / ratio)
    if k < 1 or abs(k * ratio - 1) > INTEGER_TOLERANCE:
        low = int(1 / ratio // 1)
        near = f"1/{low + 1}" if low < 1 else f"1/{low} or 1/{low + 1}"
        raise RecipeError(
            f"order every_k needs one safe row after each k task rows, but {float(ratio):g} safe rows per task row is "
            f"one after each {float(1 / ratio):g}: use the order `even`, or the ratio {near}"
        )
    return k


def derive_batch(ratio: Fraction, n_rows: int, n_task: int, epochs: int) -> Batch:
    """The safe rows of each batch of `n_rows`: n_rows * ratio / (1 + ratio), which is to be an integer.

    Raises RecipeError naming `even` when it is none, when a batch would hold no task row, or when later epochs of
    `n_task` task rows would start inside a batch.
    """
    wanted = n_rows * ratio / (1 + ratio)
    n_safe = round_half_up(wanted)
    if n_safe < 1 or n_safe >= n_rows or abs(n_safe - wanted) > INTEGER_TOLERANCE * wanted:
        low = min(max(int(wanted // 1), 1), n_rows - 1)
        near = " or ".join(f"{m}/{n_rows - m}" for m in (low, low + 1) if m < n_rows)
        raise RecipeError(
            f"order per_batch needs a whole number of safe rows in each batch of {n_rows}, but {float(ratio):g} safe "
            f"rows per task row are {float(wanted):g}: use the order `even`, or the ratio {near}"
        )
    batch = Batch(n_rows, n_safe)
    over = n_task % batch.n_task
    if epochs > 1 and over:
        raise RecipeError(
            f"order per_batch puts {batch.n_task} task rows into each batch of {n_rows}, and {n_task:,} task rows "
            f"leave {over} over, so that the second epoch would start inside a batch: use the order `even`, one epoch, "
            f"or {n_task - over:,} or {n_task - over + batch.n_task:,} task rows"
        )
    return batch


def safe_of_batches(batch: Batch, n_task: int) -> int:
    """Safe rows that `per_batch` gives `n_task` task rows; a last, shorter batch has its share, halves rounded up."""
    return _safe_through(batch, np.array([n_task], dtype=np.int64)).tolist()[0]  # type: ignore[no-any-return]


def _safe_through(batch: Batch, n_task: Schedule) -> Schedule:
    """Safe rows before task row i of `per_batch`: those of the full batches, and an even spread inside one."""
    full, rest = np.divmod(n_task, batch.n_task)
    inside: Schedule = full * batch.n_safe + (2 * rest * batch.n_safe + batch.n_task) // (2 * batch.n_task)
    return inside


def schedule(allocation: Allocation, order: OrderName, seed: int) -> Schedule:
    """The order of a mix, shape (n_rows,): a value v >= 0 is task row v, v < 0 is safe row -(v + 1).

    Safe rows are numbered through all pools by `pool_of`. In one epoch all orders but `shuffle` keep the task rows'
    order, and after every k task rows |safe(k) - ratio * k| <= 1, whatever the ratio.
    """
    first = _epoch(allocation, order, seed)
    if allocation.epochs == 1:
        return first
    if allocation.epoch_order == "same":
        return np.tile(first, allocation.epochs)
    later = [_later_epoch(allocation, order, seed, first, epoch) for epoch in range(2, allocation.epochs + 1)]
    return np.concatenate([first, *later])


def keeps_task_order(allocation: Allocation, order: OrderName) -> bool:
    """Whether every epoch has the task rows in the user's order; the first has unless rows are shuffled."""
    return order != "shuffle" and (allocation.epochs == 1 or allocation.epoch_order == "same")


def _epoch(allocation: Allocation, order: OrderName, seed: int) -> Schedule:
    if order == "shuffle":
        return _shuffled(allocation, child_seed(seed, "shuffle"))
    return _interleave(_SAFE_BEFORE[order](allocation), allocation.n_safe_total)


def _later_epoch(allocation: Allocation, order: OrderName, seed: int, first: Schedule, epoch: int) -> Schedule:
    if order == "shuffle":
        return _shuffled(allocation, child_seed(seed, f"shuffle:{epoch}"))
    task = permutation(allocation.n_task, child_seed(seed, f"epoch:{epoch}:task"))
    safe = np.empty(allocation.n_safe_total, dtype=np.int64)
    pools = pool_of(allocation.n_safe)
    for pool, n_rows in enumerate(allocation.n_safe):
        places = np.flatnonzero(pools == pool)
        safe[places] = places[permutation(n_rows, child_seed(seed, f"epoch:{epoch}:safe:{pool}"))]
    is_task = first >= 0
    values = np.empty_like(first)
    values[is_task] = task[first[is_task]]
    values[~is_task] = -1 - safe[-1 - first[~is_task]]
    return values


def _shuffled(allocation: Allocation, seed: int) -> Schedule:
    mixed = permutation(allocation.n_epoch_rows, seed)
    return np.where(mixed < allocation.n_task, mixed, allocation.n_task - 1 - mixed)


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


def _per_batch_counts(allocation: Allocation) -> Schedule:
    task_rows = np.arange(allocation.n_task, dtype=np.int64)
    return np.zeros_like(task_rows) if allocation.batch is None else _safe_through(allocation.batch, task_rows)


# For each order that keeps the task rows' order: how many safe rows stand before task row i, for i = 0..n_task-1.
_SAFE_BEFORE: dict[OrderName, Callable[[Allocation], Schedule]] = {
    "even": _even_counts,
    "every_k": _every_k_counts,
    "per_batch": _per_batch_counts,
}


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
    """The pool that each safe row of an epoch comes from, shape (sum(n_safe),).

    Pools take turns in proportion to their counts: row j of a pool with n rows stands at (j + 1/2) / n of the way,
    ties to the pool named first, so no part of the mix is left to one pool.
    """
    pools = np.repeat(np.arange(len(n_safe), dtype=np.int64), n_safe)
    midpoints = np.concatenate([(2 * np.arange(n) + 1) / (2 * n) for n in n_safe if n] or [np.empty(0)])
    order: npt.NDArray[np.int64] = np.lexsort((pools, midpoints))
    return pools[order]


@dataclass(frozen=True)
class WorstPrefix:
    """The prefix of an epoch where safe(k) is farthest from ratio * k: after `n_task` task rows of `epoch` (from 1).

    `n_safe` counts safe rows up to the next task row; `deviation` is |n_safe - ratio * n_task|, in rows.
    """

    epoch: int
    n_task: int
    n_safe: int
    deviation: float


def worst_prefix(order: Schedule, ratio: Fraction, epochs: int = 1) -> WorstPrefix:
    """The first prefix with the largest deviation over all epochs."""
    found = [_worst_of(rows, ratio, epoch) for epoch, rows in enumerate(order.reshape(epochs, -1), start=1)]
    return max(found, key=lambda prefix: (prefix.deviation, -prefix.epoch))


def _worst_of(rows: Schedule, ratio: Fraction, epoch: int) -> WorstPrefix:
    is_task = rows >= 0
    k = np.cumsum(is_task)
    ends = np.flatnonzero(np.append(is_task[1:], True))  # a segment ends where the next task row begins
    n_task, n_safe = k[ends], ends + 1 - k[ends]
    deviation = np.abs(n_safe - float(ratio) * n_task)
    if not len(deviation):
        return WorstPrefix(epoch, 0, 0, 0.0)
    worst = int(deviation.argmax())
    return WorstPrefix(epoch, int(n_task[worst]), int(n_safe[worst]), float(deviation[worst]))


def prefix_deviation(order: Schedule, ratio: Fraction, epochs: int = 1) -> float:
    """The largest |safe(k) - ratio * k| after any k task rows of an epoch, in rows."""
    return worst_prefix(order, ratio, epochs).deviation
