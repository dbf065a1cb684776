"""EM-F1, any-of-k and the bootstrap against published and closed-form values."""

import math

import numpy as np
import pytest

from curator.errors import BadInputError
from trainer.evaluate.metrics import (
    any_of_k,
    bootstrap,
    em_f1,
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
