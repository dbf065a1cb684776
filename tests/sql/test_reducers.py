"""How several misaligned losses become one, and the gap of a whole answer, against plain arithmetic."""

import statistics
from collections.abc import Sequence

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sql
from tests.sql.plain import Model, gap_database

LOSSES = {"m1": 2.0, "m2": 7.0, "m3": 3.0, "m4": 4.0}
EXPECTED = {"mean": 4.0, "median": 3.5, "min": 2.0, "max": 7.0}


def models(n_tokens: int = 5) -> list[Model]:
    rows = [Model(name, "misaligned", {"x": (loss * n_tokens, n_tokens)}) for name, loss in LOSSES.items()]
    return [Model("a", "aligned", {"x": (1.0 * n_tokens, n_tokens)}), *rows]


@pytest.mark.parametrize("reducer", EXPECTED)
def test_reducers(reducer: str) -> None:
    with gap_database(["x"], models()) as connection:
        row = connection.execute(
            "select mean_nll_misaligned, gap_abs, sum_gap from gap_rows(reducer := $r)", {"r": reducer}
        ).fetchone()
    loss = EXPECTED[reducer]
    assert row == pytest.approx((loss, loss - 1, 5 * (loss - 1)))


def test_weights_follow_the_names_and_not_the_order_of_ids() -> None:
    names, weights = ["m3", "m1", "m4", "m2"], [1.0, 0.0, 2.0, 5.0]
    with gap_database(["x"], models()) as connection:
        given_order = connection.execute(
            "select gap_abs from gap_rows(use_misaligned := $m, reducer := 'weighted', weights := $w)",
            {"m": names, "w": weights},
        ).fetchone()
        unweighted = connection.execute(
            "select gap_abs from gap_rows(use_misaligned := $m, reducer := 'weighted')", {"m": names}
        ).fetchone()
    expected = sum(w * LOSSES[name] for name, w in zip(names, weights, strict=True)) / sum(weights) - 1
    assert given_order == pytest.approx((expected,))
    assert unweighted == (None,)


@pytest.mark.parametrize("reducer", [*EXPECTED, "weighted", "other"])
def test_no_reducer_takes_fewer_models_than_named(reducer: str) -> None:
    lacking = [model for model in models() if model.scorer_id != "m2"] + [Model("m2", "misaligned", {})]
    with gap_database(["x"], lacking) as connection:
        row = connection.execute(
            "select gap_abs, sum_gap from gap_rows(use_misaligned := $m, reducer := $r, weights := $w)",
            {"m": list(LOSSES), "r": reducer, "w": [1.0] * 4},
        ).fetchone()
    assert row == (None, None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 50, allow_nan=False), min_size=1, max_size=6), st.data())
def test_the_macro_agrees_with_plain_arithmetic(losses: Sequence[float], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(losses), max_size=len(losses)))
    with duckdb.connect() as connection:
        connection.execute(sql.view_text("ensemble"))
        found = connection.execute(
            "select " + ", ".join(f"ensemble($l, $n, '{name}', $w)" for name in (*EXPECTED, "weighted")),
            {"l": list(losses), "n": len(losses), "w": weights},
        ).fetchone()
    plain = [statistics.fmean(losses), statistics.median(losses), min(losses), max(losses)]
    plain.append(sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights))
    assert found == pytest.approx(tuple(plain))
