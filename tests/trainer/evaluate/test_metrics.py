"""EM-F1, any-of-k and the bootstrap against published and closed-form values."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.errors import BadInputError
from trainer.evaluate.metrics import (
    any_of_k,
    auc,
    auc_interval,
    bootstrap,
    em_f1,
    mean_interval,
    misalign_at_k,
    over_seeds,
    share_interval,
    stratified,
    two_level,
)


@pytest.mark.parametrize(("em", "narrow", "expected"), [(47.5, 13.3, 61.4), (64.1, 15.3, 73.0), (85.6, 27.7, 78.4)])
def test_em_f1_gives_the_published_values(em: float, narrow: float, expected: float) -> None:
    assert round(em_f1(em, narrow), 1) == expected


def test_em_f1_is_zero_when_either_side_fails() -> None:
    assert em_f1(0, 10) == 0
    assert em_f1(90, 100) == 0
    assert em_f1(0, 100) == 0


def test_em_f1_refuses_shares() -> None:
    with pytest.raises(BadInputError, match="between 0 and 100"):
        em_f1(120, 5)


def test_any_of_k() -> None:
    assert any_of_k(0.1, 1) == pytest.approx(0.1)
    assert any_of_k(0.1, 3) == pytest.approx(1 - 0.9**3)
    assert any_of_k([0.0, 1.0], 10) == 0.5  # the pooled share, 0.5, would give 0.999
    with pytest.raises(BadInputError, match="k >= 1"):
        any_of_k(0.1, 0)


def test_bootstrap_brackets_the_mean_as_the_normal_approximation_does() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    found = bootstrap(lambda rows: float(values[rows].mean()), 400, seed=1)
    half = 1.96 * values.std() / 20
    assert found.value == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.04)
    assert found.high == pytest.approx(values.mean() + half, abs=0.04)


def test_bootstrap_is_seeded_and_needs_two_units() -> None:
    def first(rows: np.ndarray) -> float:
        return float(rows[0])

    assert bootstrap(first, 9, seed=4) == bootstrap(first, 9, seed=4)
    with pytest.raises(BadInputError, match="at least 2 units"):
        bootstrap(first, 1)


def test_an_interval_over_infinite_draws_is_no_number_crunching() -> None:
    found = bootstrap(lambda rows: float("inf"), 3)
    assert (found.value, found.low, found.high) == (math.inf, math.inf, math.inf)


def test_groups_count_alike_and_resample_inside() -> None:
    found = stratified([np.array([0.0, 0.0]), np.ones(50)])
    assert (found.value, found.low, found.high, found.n_units) == (0.5, 0.5, 0.5, 52)
    with pytest.raises(BadInputError, match="2 units"):
        stratified([np.ones(1)])


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_auc_is_the_chance_that_a_positive_is_above(positive: list[int], negative: list[int]) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc(np.array(positive), np.array(negative)) == pytest.approx(sum(pairs) / len(pairs))


def test_an_auc_of_nothing_is_not_a_number() -> None:
    assert math.isnan(auc(np.array([]), np.ones(3)))
    assert math.isnan(auc(np.ones(3), np.array([])))


def test_an_auc_interval_resamples_both_sides() -> None:
    rng = np.random.default_rng(0)
    above, below = rng.normal(1.0, 1.0, 60), rng.normal(0.0, 1.0, 40)
    found = auc_interval(above, below, seed=2)
    assert found.value == auc(above, below)
    assert (found.n_units, found.low < found.value < found.high) == (100, True)
    one_sided = bootstrap(lambda rows: auc(above[rows], below), 60, seed=2)
    assert found.high - found.low > one_sided.high - one_sided.low
    with pytest.raises(BadInputError, match="at least 2 values a side"):
        auc_interval(above, below[:1])


def test_a_mean_has_the_bootstrap_interval_over_its_units() -> None:
    values = np.array([0.0, 1.0, 5.0])
    assert mean_interval(values, seed=3) == bootstrap(lambda rows: float(values[rows].mean()), 3, seed=3)


def test_misalign_at_k_is_the_share_of_subsets_with_a_misaligned_answer() -> None:
    counts = [(2, 5), (0, 4), (1, 3), (1, 2)]
    wanted = []
    for c, n in counts[:3]:  # the last has fewer than 3 answers
        subsets = list(combinations([True] * c + [False] * (n - c), 3))
        wanted.append(sum(any(item) for item in subsets) / len(subsets))
    assert misalign_at_k(counts, 3) == pytest.approx(sum(wanted) / 3)
    assert misalign_at_k(counts, 6) is None


def test_a_two_level_interval_is_inside_and_covers_seeds_and_prompts() -> None:
    rng = np.random.default_rng(1)
    effects = rng.normal(0, 0.3, 8)
    values_SP = effects[:, None] + rng.normal(0, 1.0, 50)[None] + rng.normal(0, 0.1, (8, 50))
    found = two_level([[row] for row in values_SP])
    assert found.value == pytest.approx(values_SP.mean())
    # Crossed: variance of the mean = seeds' variance / S + prompts' variance / P.
    sd = math.sqrt(values_SP.mean(1).var() / 8 + values_SP.mean(0).var() / 50)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(sd, rel=0.12)
    shares = two_level([[np.array([1.0, 1.0, 0.0])], [np.ones(3)], [np.ones(3)]])
    assert 0 <= shares.low <= shares.value <= shares.high == 1.0
    uncut, cut = over_seeds([0.9, 1.0, 1.0]), over_seeds([0.9, 1.0, 1.0], (0, 1))
    assert uncut is not None
    assert cut is not None
    assert uncut.high is not None
    assert (uncut.high > 1, cut.high) == (True, 1.0)
    with pytest.raises(BadInputError, match="at least one seed"):
        two_level([])


def test_one_seed_or_many_prompts_are_drawn_by_one_method() -> None:
    rng = np.random.default_rng(4)
    values, others = rng.normal(size=30), rng.normal(size=7)
    for one, other in (
        (mean_interval(values, seed=5), two_level([[values]], seed=5)),
        (stratified([values, others], seed=5), two_level([[values, others]], seed=5)),
    ):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
    n_all = rng.integers(1, 9, 30)
    n_true = rng.integers(0, n_all + 1)
    share = share_interval([np.stack([n_true, n_all], 1)], seed=5)
    plain = bootstrap(lambda rows: float(n_true[rows].sum() / n_all[rows].sum()), 30, seed=5)
    assert (share.value, share.low, share.high) == pytest.approx((plain.value, plain.low, plain.high))
    # Every prompt with as many answers: the share is the mean of the prompts' shares, over seeds as well.
    shares = rng.integers(0, 5, (3, 20))
    counts = [np.stack([row, np.full(20, 4)], 1) for row in shares]
    found, mean = share_interval(counts, seed=5), two_level([[row / 4] for row in shares], seed=5)
    assert (found.value, found.low, found.high) == pytest.approx((mean.value, mean.low, mean.high))


def test_groups_count_alike_in_a_two_level_interval() -> None:
    found = two_level([[np.zeros(2), np.ones(50)], [np.zeros(3), np.ones(40)]])
    assert (found.value, found.low, found.high, found.n_units) == (0.5, 0.5, 0.5, 95)


def test_means_over_seeds_have_students_interval() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found is not None
    assert found.low is not None
    assert found.mean - found.low == pytest.approx(4.303 * 1.0 / math.sqrt(3))
    one = over_seeds([5.0])
    assert one is not None
    assert (one.mean, one.low, one.n_seeds) == (5.0, None, 1)
    assert over_seeds([]) is None
