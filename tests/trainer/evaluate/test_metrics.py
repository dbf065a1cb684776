"""EM-F1, any-of-k and the bootstrap against published and closed-form values."""

import math

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
    over_seeds,
    stratified,
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


def test_means_over_seeds_have_students_interval() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found is not None
    assert found.low is not None
    assert found.mean - found.low == pytest.approx(4.303 * 1.0 / math.sqrt(3))
    one = over_seeds([5.0])
    assert one is not None
    assert (one.mean, one.low, one.n_seeds) == (5.0, None, 1)
    assert over_seeds([]) is None
