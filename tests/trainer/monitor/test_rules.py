"""Alarm rules, against numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.errors import BadInputError
from trainer.config.monitor import MonitorSettings
from trainer.monitor.alarm import fit_predictor, fit_zscore

DRIFTS = np.array([[0.0, 0.1], [0.1, 0.0], [0.5, 0.1], [0.6, 0.0], [0.05, 0.05], [0.55, 0.1]])


RATES = [0.0, 0.01, 0.2, 0.3, 0.0, 0.25]


def test_the_predictor_is_ridge_regression_of_logit_rates() -> None:
    rule = fit_predictor(DRIFTS, RATES, ("a", "b"), "id")
    scale = DRIFTS.std(axis=0)
    design = np.hstack([DRIFTS / scale, np.ones((6, 1))])
    clipped = np.clip(RATES, 0.005, 0.995)
    target = np.log(clipped / (1 - clipped))

    def solve(chosen: list[int]) -> np.ndarray:
        x, y = design[chosen], target[chosen]
        found: np.ndarray = np.linalg.solve(x.T @ x + rule.ridge * np.diag([1, 1, 0]), x.T @ y)
        return found

    whole = solve(list(range(6)))
    np.testing.assert_allclose(rule.weights, whole[:2] / scale)
    assert rule.bias == pytest.approx(whole[2])
    left_out = [design[i] @ solve([j for j in range(6) if j != i]) for i in range(6)]
    assert rule.left_out_error == pytest.approx(np.sqrt(np.mean((np.array(left_out) - target) ** 2)))
    assert rule.left_out_wrong == sum((value > np.log(0.05 / 0.95)) != (r > 0.05) for value, r in
                                      zip(left_out, RATES, strict=True))  # fmt: skip
    high, low = rule.judge(np.array([0.7, 0.05])), rule.judge(np.array([0.0, 0.05]))
    assert high["predicted_em_rate"] == pytest.approx(
        1 / (1 + np.exp(-(np.dot(rule.weights, [0.7, 0.05]) + rule.bias)))
    )
    assert (high["alarm"], low["alarm"]) == (True, False)
    assert "5 %" in rule.describe()


def test_the_z_score_and_what_it_says() -> None:
    benign = np.array([[0.0, 1.0], [0.2, 1.2], [0.1, 0.9], [0.3, 1.1], [0.4, 1.3]])
    rule = fit_zscore(benign, 2, ("a", "b"), "id")
    drift = np.array([0.2, -1.0])
    z = (drift - benign.mean(0)) / benign.std(0, ddof=1)
    verdict = rule.judge(drift)
    assert verdict["z"] == pytest.approx(z[1])
    assert (verdict["z_trait"], verdict["alarm"]) == ("b", True)
    assert rule.judge(benign[2])["alarm"] is False
    assert "no predictor" in rule.describe()
    assert "not an EM rate" in rule.describe()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_predictor(DRIFTS[:3], RATES[:3], ("a", "b"), "id"), "at least 4 known runs on both sides of 5 %"),
        (lambda: fit_predictor(DRIFTS, [0.0] * 6, ("a", "b"), "id"), "found 6, 0 of them above"),
        (lambda: fit_predictor(DRIFTS, [31.0] * 6, ("a", "b"), "id"), "shares from 0 to 1"),
        (lambda: fit_zscore(DRIFTS, 1, ("a", "b"), "id"), "at least 2 benign runs"),
        (lambda: fit_zscore(DRIFTS * [1, 0], 3, ("a", "b"), "id"), "do not drift at all along b"),
    ],
)
def test_too_little_to_fit_on(call: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        call()


def test_the_interval_follows_checkpoints_or_a_tenth_of_the_run() -> None:
    settings = MonitorSettings(directions=Path("d"))
    assert settings.interval(7, 100) == 7
    assert settings.interval(None, 100) == 10
    assert settings.interval(None, 4) == 1
    assert settings.model_copy(update={"every": 3}).interval(7, 100) == 3
