"""How many safe rows: a function of counts and recipe (method.md, "Amount and order"); `curator.mix.order` places them.

All arithmetic on amounts is exact: a ratio means the decimal the user wrote (0.05 is 1/20), so 5 % of 5,400 task
rows is 270 everywhere. Rounding rule: the total over all pools is rounded to the nearest row, halves up; the pools
share it by largest remainder, ties to the pool named first. `every_k` rounds down, since a last group of fewer
than k task rows has no safe row after it; `per_batch` rounds its last, shorter batch. Amounts are per epoch.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from curator.errors import RecipeError
from curator.mix.order import (
    Allocation,
    derive_batch,
    derive_k,
    round_half_up,
    safe_of_batches,
)
from curator.recipe import AMOUNTS, Pool, Recipe
from curator.recipe.fractions import exact, largest_remainder

__all__ = ["Allocation", "allocate", "amounts", "exact", "largest_remainder", "sized"]


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


def sized(recipe: Recipe, found: Mapping[int, int]) -> Recipe:
    """The recipe with the amounts of some pools (by place) replaced by the rows that their corpora gave.

    Amounts in tokens, and pools that may give fewer rows than asked, depend on the rows; all else in this module
    depends on counts alone. An amount in tokens that is not known yet counts as no row.
    """
    unknown = {i: 0 for i, pool in enumerate(recipe.pools) if pool.tokens is not None}
    rows = {**unknown, **found}
    blank: dict[str, object] = dict.fromkeys(AMOUNTS)
    pools = [
        pool.model_copy(update={**blank, "rows": rows[i]}) if i in rows else pool for i, pool in enumerate(recipe.pools)
    ]
    return recipe.model_copy(update={"pools": tuple(pools)})


def _own_amount(pool: Pool, n_task: int) -> Fraction | None:
    if pool.rows is not None:
        return Fraction(pool.rows)
    return None if pool.interleave_ratio is None else exact(pool.interleave_ratio) * n_task


def allocate(recipe: Recipe, n_task: int) -> Allocation:
    """Rows of each epoch of the mix for a task set of `n_task` rows.

    Raises RecipeError for an empty task set, and for `every_k` and `per_batch` when the amount gives no integer
    (it names `even`).
    """
    if n_task < 1:
        raise RecipeError("the task set has no rows: there is nothing to mix safe rows into")
    shares = amounts(recipe.pools, n_task)
    asked = sum(shares, Fraction())
    ratio = asked / n_task
    total, k, batch = round_half_up(asked), None, None
    if recipe.order == "every_k" and asked:
        k = min(derive_k(ratio), n_task + 1)  # past the end is past the end, and fits 64 bits
        total = n_task // k
    elif recipe.order == "per_batch" and asked:
        batch = derive_batch(ratio, recipe.batch_rows, n_task, recipe.epochs)
        total = safe_of_batches(batch, n_task)
    # The pools keep their proportions of the total that the order leaves.
    parts = [share * total / asked for share in shares] if k or batch else shares
    counts = largest_remainder(parts, total)
    return Allocation(n_task, counts, ratio, k, batch, recipe.epochs, recipe.epoch_order)
