import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.errors import RecipeError
from curator.mix.allocation import allocate
from curator.mix.order import (
    Allocation,
    Batch,
    WorstPrefix,
    pool_of,
    prefix_deviation,
    schedule,
    worst_prefix,
)
from curator.recipe import OrderName, parse_recipe
from curator.recipe.fractions import largest_remainder

ORDERS: tuple[OrderName, ...] = ("every_k", "even", "shuffle")


def mix_of(n_task: int, order: OrderName, seed: int = 0, **amount: float) -> tuple[Allocation, np.ndarray]:
    allocation = allocate(parse_recipe({"corpus": "c", "order": order, **amount}), n_task)
    return allocation, schedule(allocation, order, seed)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("ratio", "n_rows"), [(0.01, 101), (0.05, 105), (0.2, 120), (0.5, 150)])
def test_the_papers_amounts(order: OrderName, ratio: float, n_rows: int) -> None:
    assert len(mix_of(100, order, interleave_ratio=ratio)[1]) == n_rows


@pytest.mark.parametrize("order", ORDERS)
def test_5400_rows_at_5_percent_gain_270(order: OrderName) -> None:
    assert mix_of(5400, order, interleave_ratio=0.05)[0].n_safe == (270,)


def test_rounding_halves_up_and_every_k_down() -> None:
    assert mix_of(10, "even", interleave_ratio=0.05)[0].n_safe == (1,)
    assert mix_of(9, "even", interleave_ratio=0.05)[0].n_safe == (0,)
    assert mix_of(110, "every_k", interleave_ratio=0.05)[0].n_safe == (5,)


def test_share_of_the_mix() -> None:
    assert mix_of(95, "even", mix_share=0.05)[0].n_safe == (5,)
    assert mix_of(100, "even", mix_share=0.5)[0].n_safe == (100,)
    allocation, _ = mix_of(100, "every_k", mix_share=0.2)
    assert (allocation.n_safe, allocation.k) == ((25,), 4)


def test_every_k_puts_one_safe_row_after_each_k() -> None:
    _, order = mix_of(7, "every_k", interleave_ratio=0.5)
    assert order.tolist() == [0, 1, -1, 2, 3, -2, 4, 5, -3, 6]
    _, order = mix_of(4, "every_k", interleave_ratio=1 / 3)
    assert order.tolist() == [0, 1, 2, -1, 3]
    _, order = mix_of(4, "every_k", rows=2)
    assert order.tolist() == [0, 1, -1, 2, 3, -2]


@pytest.mark.parametrize("amount", [{"interleave_ratio": 0.3}, {"rows": 33}, {"interleave_ratio": 2.0}])
def test_every_k_without_an_integer_names_even(amount: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="`even`"):
        mix_of(100, "every_k", **amount)


def test_even_spreads_any_ratio() -> None:
    _, order = mix_of(4, "even", interleave_ratio=0.5)
    assert order.tolist() == [0, -1, 1, 2, -2, 3]
    _, order = mix_of(2, "even", interleave_ratio=2.5)
    assert order.tolist() == [0, -1, -2, -3, 1, -4, -5]


def test_an_empty_task_set_is_refused() -> None:
    with pytest.raises(RecipeError, match="no rows"):
        mix_of(0, "even", rows=3)


def test_shares_that_leave_no_room_are_refused() -> None:
    recipe = parse_recipe({"pools": [{"corpus": "a", "mix_share": 0.5}, {"corpus": "b", "mix_share": 0.5}]})
    with pytest.raises(RecipeError, match="below 1"):
        allocate(recipe, 10)


def test_two_pools_share_one_rounded_total() -> None:
    recipe = parse_recipe(
        {"pools": [{"corpus": "a", "interleave_ratio": 0.025}, {"corpus": "b", "interleave_ratio": 0.025}]}
    )
    assert allocate(recipe, 100).n_safe == (3, 2)
    recipe = parse_recipe({"pools": [{"corpus": "a", "mix_share": 0.1}, {"corpus": "b", "rows": 10}]})
    assert allocate(recipe, 80).n_safe == (10, 10)


def test_pools_take_turns() -> None:
    assert pool_of([2, 4]).tolist() == [1, 0, 1, 1, 0, 1]
    assert pool_of([0, 1]).tolist() == [1]
    assert pool_of([0]).tolist() == []


AMOUNTS = st.one_of(
    st.fixed_dictionaries({"interleave_ratio": st.floats(0, 4)}),
    st.fixed_dictionaries({"interleave_ratio": st.integers(1, 40).map(lambda k: 1 / k)}),
    st.fixed_dictionaries({"mix_share": st.floats(0, 0.8)}),
    st.fixed_dictionaries({"rows": st.integers(0, 500)}),
)


@given(amount=AMOUNTS, n_task=st.integers(1, 400), order=st.sampled_from(ORDERS), seed=st.integers(0, 2**63 - 1))
def test_no_row_is_lost_or_repeated_and_prefixes_keep_the_ratio(
    amount: dict[str, float], n_task: int, order: OrderName, seed: int
) -> None:
    try:
        allocation, rows = mix_of(n_task, order, seed, **amount)
    except RecipeError:
        assert order == "every_k"
        return
    n_safe = allocation.n_safe_total
    assert sorted(rows.tolist()) == list(range(-n_safe, n_task))
    assert abs(n_safe - allocation.ratio * n_task) <= (Fraction(1, 2) if order != "every_k" else 1)
    if order == "shuffle":
        return
    assert [v for v in rows.tolist() if v >= 0] == list(range(n_task))
    assert [v for v in rows.tolist() if v < 0] == list(range(-1, -n_safe - 1, -1))
    # The bound, counted the slow way and exactly: safe rows up to the next task row.
    safe = task = 0
    for position, value in enumerate(rows.tolist()):
        safe, task = safe + (value < 0), task + (value >= 0)
        if position + 1 == len(rows) or rows[position + 1] >= 0:
            assert abs(safe - allocation.ratio * task) <= 1
    assert prefix_deviation(rows, allocation.ratio) <= 1 + 1e-9


@given(weights=st.lists(st.integers(0, 50), min_size=1, max_size=6), total=st.integers(0, 200))
def test_allocation_is_floor_or_ceiling_and_sums(weights: list[int], total: int) -> None:
    if not sum(weights):
        weights[0] = 1
    shares = [Fraction(weight * total, sum(weights)) for weight in weights]
    counts = largest_remainder(shares, total)
    assert sum(counts) == total
    assert all(share // 1 <= count <= -(-share // 1) for count, share in zip(counts, shares, strict=True))
    pools = pool_of(counts)
    assert np.bincount(pools, minlength=len(counts)).tolist() == list(counts)


def per_batch(n_task: int, batch_size: int, epochs: int = 1, **amount: float) -> tuple[Allocation, np.ndarray]:
    document = {"corpus": "c", "order": "per_batch", "batch_size": batch_size, "epochs": epochs, **amount}
    allocation = allocate(parse_recipe(document), n_task)
    return allocation, schedule(allocation, "per_batch", 0)


def test_per_batch_derives_m_from_the_amount() -> None:
    allocation, order = per_batch(6, 4, interleave_ratio=1 / 3)
    assert allocation.batch == Batch(4, 1)
    assert order.tolist() == [0, 1, -1, 2, 3, 4, -2, 5]
    assert per_batch(90, 10, mix_share=0.1)[0].batch == Batch(10, 1)
    assert per_batch(56, 16, rows=8)[0].batch == Batch(16, 2)
    assert per_batch(5, 4, interleave_ratio=0)[1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("batch_size", "ratio", "near"), [(16, 0.05, "1/15 or 2/14"), (16, 20.0, "15/1"), (10, 0.2, "1/9 or 2/8")]
)
def test_per_batch_without_an_integer_names_even(batch_size: int, ratio: float, near: str) -> None:
    with pytest.raises(RecipeError, match=f"`even`, or the ratio {near}"):
        per_batch(100, batch_size, interleave_ratio=ratio)


def test_later_epochs_may_not_start_inside_a_batch() -> None:
    with pytest.raises(RecipeError, match="`even`, one epoch, or 90 or 105 task rows"):
        per_batch(100, 16, epochs=2, mix_share=1 / 16)
    allocation, order = per_batch(90, 16, epochs=2, mix_share=1 / 16)
    assert ((order.reshape(-1, 16) < 0).sum(axis=1) == 1).all()
    assert len(order) == allocation.n_rows == 192


@pytest.mark.parametrize(
    "document", [{"order": "per_batch"}, {"order": "even", "batch_size": 8}, {"order": "per_batch", "batch_size": 1}]
)
def test_a_batch_size_belongs_to_per_batch(document: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="batch_size"):
        parse_recipe({"corpus": "c", **document})


@given(batch_size=st.integers(2, 40), data=st.data(), n_task=st.integers(1, 500))
def test_every_batch_holds_exactly_m(batch_size: int, data: st.DataObject, n_task: int) -> None:
    m = data.draw(st.integers(1, batch_size - 1))
    allocation, order = per_batch(n_task, batch_size, interleave_ratio=m / (batch_size - m))
    full = len(order) // batch_size
    assert ((order[: full * batch_size].reshape(full, batch_size) < 0).sum(axis=1) == m).all()
    assert full == n_task // (batch_size - m)  # the last batch is short: no full one hides in it
    assert sorted(order.tolist()) == list(range(-allocation.n_safe_total, n_task))
    assert [v for v in order.tolist() if v >= 0] == list(range(n_task))
    assert prefix_deviation(order, allocation.ratio) <= 1 + 1e-9


@given(
    n_task=st.integers(1, 60),
    rows=st.integers(0, 40),
    order=st.sampled_from(["even", "shuffle"]),
    epochs=st.integers(2, 4),
    epoch_order=st.sampled_from(["same", "own"]),
    seed=st.integers(0, 2**62),
)
def test_every_epoch_is_a_whole_mix(
    n_task: int, rows: int, order: OrderName, epochs: int, epoch_order: str, seed: int
) -> None:
    pools = [{"corpus": "c", "rows": rows}, {"corpus": "d", "rows": 3}]
    document = {"pools": pools, "order": order, "epochs": epochs, "epoch_order": epoch_order, "seed": seed}
    allocation = allocate(parse_recipe(document), n_task)
    found = schedule(allocation, order, seed).reshape(epochs, -1)
    alone = schedule(replace(allocation, epochs=1), order, seed)
    pools_of = pool_of(allocation.n_safe)
    assert found[0].tolist() == alone.tolist()
    for epoch in found:
        assert sorted(epoch.tolist()) == sorted(alone.tolist())
        if epoch_order == "same":
            assert epoch.tolist() == alone.tolist()
        elif order == "even":  # the places of task rows, and of each pool's rows, stay
            assert ((epoch >= 0) == (alone >= 0)).all()
            assert pools_of[-1 - epoch[epoch < 0]].tolist() == pools_of[-1 - alone[alone < 0]].tolist()
    if order == "even":
        assert prefix_deviation(found.ravel(), allocation.ratio, epochs) <= 1 + 1e-9
    if epoch_order == "own" and n_task > 20:
        assert found[0].tolist() != found[1].tolist()


def test_the_worst_prefix_is_named() -> None:
    _, order = mix_of(4, "every_k", rows=2)
    assert worst_prefix(order, Fraction(1, 2)) == WorstPrefix(epoch=1, n_task=1, n_safe=0, deviation=0.5)
    moved = np.array([0, 1, 2, 3, -1, -2, 0, 1, -1, 2, 3, -2])
    assert worst_prefix(moved, Fraction(1, 2), epochs=2) == WorstPrefix(1, 3, 0, 1.5)


def test_shuffle_is_pinned_and_moves_with_the_seed() -> None:
    # Pinned: another permutation would give old mix ids to other rows.
    assert mix_of(10, "shuffle", seed=3, rows=2)[1].tolist() == PINNED_SHUFFLE
    assert mix_of(10, "shuffle", seed=4, rows=2)[1].tolist() != PINNED_SHUFFLE


PINNED_SHUFFLE = [1, -2, 8, 6, 5, 3, 7, 4, 0, -1, 2, 9]


def test_shuffle_is_fair() -> None:
    hits = np.zeros((6, 6))
    for seed in range(3000):
        _, rows = mix_of(6, "shuffle", seed=seed, rows=0)
        hits[np.arange(6), rows] += 1
    # Expected 500 in each cell, standard deviation 20.4: five of them.
    assert np.all(np.abs(hits - 500) < 102)


def test_a_million_rows_are_ordered_in_milliseconds() -> None:
    best = min(_seconds("even") for _ in range(5))
    # 16 to 25 ms on one idle core; the bound leaves room for a busy machine.
    assert best < 0.25


def _seconds(order: OrderName) -> float:
    start = time.process_time()
    mix_of(1_000_000, order, interleave_ratio=0.05)
    return time.process_time() - start
