import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.errors import NotEnoughRowsError
from curator.mix.allocation import allocate
from curator.recipe import (
    Pool,
    RefusalFilter,
    StrategySpec,
    parse_recipe,
)
from curator.recipe.seeds import child_seed, hash_keys
from curator.select.candidates import Candidates
from curator.select.filters import NO_GAP
from curator.select.select import IN_TASK_SET
from tests.pools import (
    Row,
    candidates_of,
    filtered,
    select_rows,
)
from tests.pools import chosen_ids as ids_of

NAN = float("nan")
REFUSAL = (RefusalFilter(),)


def spec_of(name: object) -> StrategySpec:
    """The strategy that a recipe means by this."""
    return Pool.model_validate({"corpus": "c", "strategy": name, "allow_negative_control": True}).strategy


def rows_of(*rows: tuple[str, float] | tuple[str, float, str]) -> Candidates:
    """Candidates from (id, score) or (id, score, head)."""
    heads = [row[2] if len(row) == 3 else "Sure" for row in rows]
    return candidates_of([Row(head, score=row[1], row_id=row[0]) for row, head in zip(rows, heads, strict=True)])


def chosen_ids(candidates: Candidates, n: int, strategy: object, seed: int = 0) -> list[str]:
    return ids_of(candidates, select_rows(candidates, n, strategy=spec_of(strategy), seed=seed))


def test_top_gap_ranks_high_first_and_breaks_ties_on_the_id() -> None:
    rows = rows_of(("d", 0.5), ("b", 1.0), ("c", 0.5), ("a", -2.0), ("e", 0.5))
    assert chosen_ids(rows, 5, "top_gap") == ["b", "c", "d", "e", "a"]


def test_rows_without_a_gap_are_counted_and_never_drawn_by_rank() -> None:
    rows = rows_of(("a", NAN), ("b", 1.0), ("c", NAN))
    selection = select_rows(rows, 1, strategy=spec_of("top_gap"))
    assert selection.result.dropped == {NO_GAP: 2}
    assert selection.n_eligible == 1
    assert selection.ranked
    assert sorted(chosen_ids(rows, 3, "random")) == ["a", "b", "c"]


def test_a_row_carries_the_first_reason_that_applies() -> None:
    rows = rows_of(("a", NAN, "Sorry"), ("b", 1.0, "Sorry"), ("c", NAN), ("d", 2.0), ("e", 3.0))
    result = filtered(rows, REFUSAL, spec_of("top_gap"), exclude={IN_TASK_SET: {"b", "e"}})
    assert result.reasons == (IN_TASK_SET, "refusal:v1", NO_GAP)
    assert result.reason_column.to_list() == ["refusal:v1", IN_TASK_SET, NO_GAP, None, IN_TASK_SET]
    assert result.dropped == {IN_TASK_SET: 2, "refusal:v1": 1, NO_GAP: 1}


def test_refusals_are_dropped_before_the_cut() -> None:
    rows = rows_of(("a", 9.0, "I'm sorry"), ("b", 2.0), ("c", 1.0))
    selection = select_rows(rows, 2, strategy=spec_of("top_gap"), filters=REFUSAL)
    assert ids_of(rows, selection) == ["b", "c"]
    assert chosen_ids(rows, 2, "top_gap") == ["a", "b"]


def test_random_depends_on_the_seed_and_is_pinned() -> None:
    rows = rows_of(*((f"{i:02d}", NAN) for i in range(50)))
    # Pinned: another order would give old mix ids to other rows.
    assert chosen_ids(rows, 6, "random", seed=7) == PINNED_RANDOM
    assert chosen_ids(rows, 6, "random", seed=8) != PINNED_RANDOM


PINNED_RANDOM = ["48", "34", "05", "04", "20", "44"]


def test_random_draws_each_row_about_equally_often() -> None:
    rows = rows_of(*((f"{i}", NAN) for i in range(10)))
    hits = np.zeros(10)
    for seed in range(2000):
        hits[select_rows(rows, 3, strategy=spec_of("random"), seed=seed).chosen] += 1
    # Expected 600 each, standard deviation 20.5: five of them.
    assert np.all(np.abs(hits - 600) < 103)


def test_seeds_by_name_differ_and_are_pinned() -> None:
    assert child_seed(0, "shuffle") == 10951488283285172897
    assert child_seed(0, "random:chats") != child_seed(0, "shuffle")
    assert hash_keys(["x"], 0, "random") != hash_keys(["x"], 0, "other")


SCORES = st.one_of(st.just(NAN), st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
POOLS = st.lists(st.tuples(SCORES, st.sampled_from(["Sure", "Sorry, no", "Here"])), min_size=1, max_size=40)


@given(
    pool=POOLS,
    strategy=st.sampled_from(["random", "top_gap"]),
    seed=st.integers(0, 2**63 - 1),
    turn=st.randoms(use_true_random=False),
    data=st.data(),
)
@settings(deadline=None)  # a busy machine
def test_counts_add_up_and_row_order_is_irrelevant(
    pool: list[tuple[float, str]], strategy: str, seed: int, turn: object, data: st.DataObject
) -> None:
    rows = [(f"{i:032x}", score, head) for i, (score, head) in enumerate(pool)]
    exclude = {row[0] for row in rows if data.draw(st.integers(0, 3)) == 0}
    candidates = rows_of(*rows)
    result = filtered(candidates, REFUSAL, spec_of(strategy), {IN_TASK_SET: exclude})
    n_eligible = len(result.eligible)
    assert sum(result.dropped.values()) + n_eligible == len(rows)

    n_rows = data.draw(st.integers(0, n_eligible))
    turn.shuffle(rows)  # type: ignore[attr-defined]
    again = rows_of(*rows)
    options = {"strategy": spec_of(strategy), "filters": REFUSAL, "exclude": {IN_TASK_SET: exclude}, "seed": seed}
    first = ids_of(candidates, select_rows(candidates, n_rows, **options))
    second = ids_of(again, select_rows(again, n_rows, **options))
    assert first == second
    assert len(set(first)) == n_rows
    assert not exclude & set(first)


def test_too_few_rows_names_what_binds_and_two_numbers() -> None:
    rows = rows_of(("a", NAN), ("b", NAN), ("c", NAN), ("d", 1.0), ("e", 2.0, "Sorry"))
    with pytest.raises(NotEnoughRowsError, match=r"binds is no_gap.*at most 1 rows.*<= 0\.05.*bring 2 more") as caught:
        select_rows(rows, 3, strategy=spec_of("top_gap"), filters=REFUSAL, n_task=20, pool="chats")
    assert caught.value.details == [
        {
            "pool": "chats",
            "asked": 3,
            "candidates": 5,
            "eligible": 1,
            "dropped": {"refusal:v1": 1, NO_GAP: 3},
            "binding": NO_GAP,
            "max_rows": 1,
            "more_rows_needed": 2,
            "max_interleave_ratio": 0.05,
        }
    ]


@settings(deadline=None)
@given(pool=POOLS, more=st.integers(1, 5), n_task=st.integers(1, 300))
def test_the_numbers_of_a_refusal_would_fix_it(pool: list[tuple[float, str]], more: int, n_task: int) -> None:
    candidates = rows_of(*((f"{i:032x}", score, head) for i, (score, head) in enumerate(pool)))
    n_eligible = len(filtered(candidates, REFUSAL, spec_of("top_gap")).eligible)
    with pytest.raises(NotEnoughRowsError, match="what binds is") as caught:
        select_rows(candidates, n_eligible + more, filters=REFUSAL, n_task=n_task)
    (detail,) = caught.value.details
    assert isinstance(detail, dict)
    assert (detail["max_rows"], detail["more_rows_needed"]) == (n_eligible, more)
    assert detail["binding"] in ("pool_size", *detail["dropped"])
    assert len(select_rows(candidates, detail["max_rows"], filters=REFUSAL).chosen) == n_eligible
    recipe = parse_recipe({"corpus": "c", "interleave_ratio": detail["max_interleave_ratio"]})
    assert allocate(recipe, n_task).n_safe_total <= n_eligible
    enough = rows_of(*((f"{i:032x}", 1.0, "Yes") for i in range(n_eligible + more)))
    assert len(select_rows(enough, n_eligible + more, filters=REFUSAL).chosen) == n_eligible + more


def test_too_small_a_pool_binds_on_its_size() -> None:
    with pytest.raises(NotEnoughRowsError, match=r"pool_size.*ingest more"):
        select_rows(rows_of(("a", 1.0)), 2, strategy=spec_of("top_gap"))
