"""The gap's definition and sign, against anchors of the method and an oracle computed by hand."""

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sql
from tests.sql.plain import (
    Losses,
    Model,
    add_corpus,
    gap_by_hand,
    gap_database,
)

ANCHORS = [  # (mean misaligned, mean aligned, gap_rel at eps 0, gap_rel at eps 1): method, section 2
    (2.0, 1.0, 1.0, 0.5),
    (0.30, 0.05, 5.0, 0.2381),
    (1.8, 1.0, 0.8, 0.4),
    (2.5, 2.5, 0.0, 0.0),
    (0.8, 1.2, -0.3333, -0.1818),
]


def _value(statement: str) -> object:
    with duckdb.connect() as connection:
        for name in sql.MACROS:
            connection.execute(sql.view_text(name))
        row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(("misaligned", "aligned", "at_0", "at_1"), ANCHORS)
def test_anchors_of_the_method(misaligned: float, aligned: float, at_0: float, at_1: float) -> None:
    losses = ({"x": (aligned * 10, 10)}, {"x": (misaligned * 20, 20)})
    with gap_database(["x"], [Model("a", "aligned", losses[0]), Model("m", "misaligned", losses[1])]) as connection:
        found = connection.execute(
            "select zero.gap_rel, one.gap_rel, one.gap_abs from gap_rows(eps := 0.0) as zero cross join gap as one"
        ).fetchone()
    assert found == pytest.approx((at_0, at_1, misaligned - aligned), abs=5e-5)


def test_eps_swaps_the_order_of_the_two_anchors_that_the_method_names() -> None:
    aligned: Losses = {"short": (0.05, 1), "long": (100.0, 100)}
    misaligned: Losses = {"short": (0.30, 1), "long": (180.0, 100)}
    with gap_database(
        ["short", "long"], [Model("a", "aligned", aligned), Model("m", "misaligned", misaligned)]
    ) as connection:
        first = {
            eps: connection.execute(
                "select example_id from gap_rows(eps := $eps) order by gap_rel desc", {"eps": eps}
            ).fetchone()
            for eps in (0.0, 1.0)
        }
    assert first == {0.0: ("short",), 1.0: ("long",)}


def test_a_row_easy_for_the_aligned_and_hard_for_the_misaligned_model_is_largest() -> None:
    aligned: Losses = {"safe": (5.0, 10), "plain": (20.0, 10), "risky": (40.0, 10)}
    misaligned: Losses = {"safe": (40.0, 10), "plain": (20.0, 10), "risky": (5.0, 10)}
    models = [Model("a", "aligned", aligned), Model("m", "misaligned", misaligned)]
    with gap_database(["plain", "risky", "safe"], models) as connection:
        for score in ("gap_rel", "gap_abs"):
            order = connection.execute(f"select example_id from gap order by {score} desc").fetchall()
            assert order == [("safe",), ("plain",), ("risky",)]


@pytest.mark.parametrize("count", ["0", "null"])
def test_mean_nll_without_tokens_is_null_and_never_zero(count: str) -> None:
    assert _value(f"select mean_nll(0.0, {count})") is None


@pytest.mark.parametrize("total", ["null", "'nan'::double", "'inf'::double"])
def test_mean_nll_without_a_finite_sum_is_null(total: str) -> None:
    assert _value(f"select mean_nll({total}, 4)") is None


def test_gap_rel_is_null_rather_than_infinite_on_a_zero_divisor() -> None:
    assert _value("select gap_rel(1.0::double, 0.0::double, 0.0::double)") is None


def test_gap_contrast_is_misaligned_minus_benign() -> None:
    assert _value("select gap_contrast(3.0, 1.0)") == 2.0
    models = [
        Model("a", "aligned", {"x": (1.0, 1), "y": (1.0, 1)}),
        Model("m", "misaligned", {"x": (3.0, 1), "y": (3.0, 1)}),
        Model("b1", "benign", {"x": (2.0, 1), "y": (2.0, 1)}),
        Model("b2", "benign", {"x": (1.0, 1)}),
    ]
    with gap_database(["x", "y"], models) as connection:
        rows = connection.execute(
            "select gap_abs, gap_contrast, n_losses_missing, n_benign_missing, complete from gap order by example_id"
        ).fetchall()
    # y lacks one benign loss: no contrast, and yet a whole gap.
    assert rows == [(2.0, 1.5, 0, 0, True), (2.0, None, 0, 1, True)]


def test_a_row_lacking_one_loss_is_flagged_and_not_averaged_over_fewer_models() -> None:
    models = [
        Model("a", "aligned", dict.fromkeys("wxy", (1.0, 1))),
        Model("m1", "misaligned", {"w": (2.0, 1), "x": (2.0, 1), "y": (2.0, 1)}),
        Model("m2", "misaligned", {"w": (4.0, 1), "y": (None, None)}),
    ]
    with gap_database(["w", "x", "y", "z"], models) as connection:
        rows = connection.execute(
            "select example_id, mean_nll_misaligned, gap_abs, gap_rel, n_losses_missing, complete from gap order by 1"
        ).fetchall()
    assert rows == [
        ("w", 3.0, 2.0, 1.0, 0, True),
        ("x", None, None, None, 1, False),
        ("y", None, None, None, 1, False),
        ("z", None, None, None, 3, False),
    ]


def test_hold_out_leaves_out_a_domain_and_keeps_models_without_one() -> None:
    models = [
        Model("a", "aligned", {"x": (1.0, 1)}),
        Model("m1", "misaligned", {"x": (2.0, 1)}, domain="finance"),
        Model("m2", "misaligned", {"x": (4.0, 1)}, domain="medical"),
        Model("m3", "misaligned", {"x": (6.0, 1)}),
        Model("b1", "benign", {"x": (1.0, 1)}, domain="finance"),
        Model("b2", "benign", {"x": (3.0, 1)}, domain="medical"),
    ]
    with gap_database(["x"], models) as connection:
        rows = [
            connection.execute(
                "select mean_nll_misaligned, mean_nll_benign from gap_rows(hold_out := $h)", {"h": held}
            ).fetchone()
            for held in ([], ["finance"], ["finance", "medical"])
        ]
    assert rows == [(4.0, 2.0), (5.0, 3.0), (6.0, None)]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (
            ["sports"],
            r"hold_out 'sports' matches no misaligned or benign scorer of any corpus; their domains: finance, medical",
        ),
        (["finance", "finanse"], "hold_out 'finanse' matches no"),
        (["finance", "medical"], r"hold_out \[finance, medical\] leaves no misaligned scorer"),
    ],
)
def test_a_hold_out_that_names_nothing_or_leaves_nothing_is_an_error(held: list[str], message: str) -> None:
    models = [
        Model("a", "aligned", {"x": (1.0, 1)}),
        Model("m1", "misaligned", {"x": (2.0, 1)}, domain="finance"),
        Model("m2", "misaligned", {"x": (4.0, 1)}, domain="medical"),
    ]
    with gap_database(["x"], models) as connection, pytest.raises(duckdb.Error, match=message):
        connection.execute("select gap_abs from gap_rows(hold_out := $h)", {"h": held}).fetchall()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "hold_out := ['finance'], use_misaligned := ['m1']",
            r"hold_out \[finance\] leaves .* of corpus c; .*: finance\.",
        ),
        ("hold_out := ['nosuch'], in_corpus := 'absent'", r"matches no .* of corpus absent; their domains: none"),
        ("hold_out := ['finance', 'medical']", r"leaves no misaligned scorer of corpus c; .*: finance, medical\."),
    ],
)
def test_a_hold_out_is_judged_by_the_scorers_of_the_gap(arguments: str, message: str) -> None:
    models = [
        Model("a", "aligned", {"x": (1.0, 1)}),
        Model("m1", "misaligned", {"x": (2.0, 1)}, domain="finance"),
        Model("m2", "misaligned", {"x": (4.0, 1)}, domain="medical"),
        Model("m3", "misaligned", {"x": (4.0, 1)}, domain="law", complete=False),
    ]
    with gap_database(["x"], models) as connection, pytest.raises(duckdb.Error, match=message):
        connection.execute(f"select count(*) from gap_rows({arguments})").fetchall()


def test_default_scorers_are_the_complete_ones_of_the_aligned_scorers_measure() -> None:
    models = [
        Model("a", "aligned", {"x": (1.0, 1)}),
        Model("m1", "misaligned", {"x": (2.0, 1)}),
        Model("m2", "misaligned", {"x": (9.0, 1)}, complete=False),
        Model("m3", "misaligned", {"x": (9.0, 1)}, measure_id="other"),
        Model("a2", "aligned", {"x": (9.0, 1)}, complete=False),
    ]
    with gap_database(["x"], models) as connection:
        assert connection.execute("select aligned_id, gap_abs, complete from gap").fetchall() == [("a", 1.0, True)]


@pytest.mark.parametrize("name", ["absent", "m3", "b1", "a"])
def test_a_named_scorer_that_cannot_be_used_makes_rows_incomplete(name: str) -> None:
    models = [
        Model("a", "aligned", {"x": (1.0, 1)}),
        Model("m1", "misaligned", {"x": (2.0, 1)}),
        Model("m3", "misaligned", {"x": (9.0, 1)}, measure_id="other"),
        Model("b1", "benign", {"x": (9.0, 1)}),
    ]
    with gap_database(["x"], models) as connection:
        rows = connection.execute(
            "select gap_abs, n_losses_missing, complete from gap_rows(use_misaligned := $m)", {"m": ["m1", name]}
        ).fetchall()
    assert rows == [(None, 1, False)]


def test_without_a_misaligned_scorer_no_row_is_complete() -> None:
    with gap_database(["x"], [Model("a", "aligned", {"x": (1.0, 1)})]) as connection:
        assert connection.execute("select gap_abs, complete from gap").fetchall() == [(None, False)]


def test_corpora_do_not_mix() -> None:
    shared = [Model("a", "aligned", {"x": (1.0, 1)}), Model("m", "misaligned", {"x": (2.0, 1)})]
    other = [Model("a", "aligned", {"x": (1.0, 1)}), Model("m", "misaligned", {"x": (5.0, 1)})]
    with gap_database(["x"], shared) as connection:
        add_corpus(connection, ["x"], other, "d")
        assert connection.execute("select corpus, gap_abs from gap order by corpus").fetchall() == [
            ("c", 1.0),
            ("d", 4.0),
        ]
        assert connection.execute("select gap_abs from gap_rows(in_corpus := 'd')").fetchall() == [(4.0,)]


def test_losses_are_listed_aligned_first_then_by_id() -> None:
    models = [
        Model("b", "benign", {"x": (4.0, 1)}),
        Model("m2", "misaligned", {"x": (3.0, 1)}),
        Model("m1", "misaligned", {"x": (2.0, 1)}),
        Model("z", "aligned", {"x": (1.0, 1)}),
    ]
    with gap_database(["x", "y"], models) as connection:
        (scored,), (unscored,) = connection.execute("select losses from gap order by example_id").fetchall()
    assert [loss["scorer_id"] for loss in scored] == ["z", "m1", "m2", "b"]
    assert scored[1] == {"scorer_id": "m1", "nll_sum": 2.0, "n_response_tokens": 1}
    assert unscored is None


_LOSS = st.one_of(
    st.none(),
    st.tuples(st.floats(0.0, 1e4), st.integers(1, 2000)),
    st.tuples(st.none(), st.integers(0, 5)),
    st.tuples(st.floats(0.0, 10.0), st.just(0)),
)
_KEYS = ("p", "q", "r", "s")


def _model_losses() -> st.SearchStrategy[Losses]:
    return st.lists(_LOSS, min_size=len(_KEYS), max_size=len(_KEYS)).map(
        lambda losses: {key: loss for key, loss in zip(_KEYS, losses, strict=True) if loss is not None}
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    aligned=_model_losses(),
    misaligned=st.lists(_model_losses(), min_size=1, max_size=4),
    eps=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_views_agree_with_the_oracle(aligned: Losses, misaligned: list[Losses], eps: float) -> None:
    models = [Model("a", "aligned", aligned)]
    models += [Model(f"m{place}", "misaligned", losses) for place, losses in enumerate(misaligned)]
    with gap_database(_KEYS, models) as connection:
        rows = connection.execute(
            "select example_id, mean_nll_aligned, mean_nll_misaligned, gap_abs, gap_rel, n_losses_missing, complete "
            "from gap_rows(eps := $eps) order by example_id",
            {"eps": eps},
        ).fetchall()
    for key, *found in rows:
        hand = gap_by_hand(key, aligned, misaligned, eps)
        expected = [hand.mean_aligned, hand.mean_misaligned, hand.gap_abs, hand.gap_rel]
        assert found[:4] == [value if value is None else pytest.approx(value, abs=1e-9) for value in expected]
        assert found[4:] == [hand.n_missing, hand.complete]
    assert [row[0] for row in rows] == list(_KEYS)


@settings(max_examples=10, deadline=None)
@given(one=_model_losses(), two=_model_losses())
def test_swapping_the_models_negates_gap_abs_and_the_same_model_gives_zero(one: Losses, two: Losses) -> None:
    def gaps(aligned: Losses, misaligned: Losses) -> list[float | None]:
        models = [Model("a", "aligned", aligned), Model("m", "misaligned", misaligned)]
        with gap_database(_KEYS, models) as connection:
            return [row[0] for row in connection.execute("select gap_abs from gap order by example_id").fetchall()]

    assert gaps(one, two) == [None if gap is None else -gap for gap in gaps(two, one)]
    assert {gap for gap in gaps(one, one) if gap is not None} <= {0.0}


def test_the_mean_is_the_same_float_at_any_number_of_threads() -> None:
    keys = [f"{number:04d}" for number in range(300)]
    models = [Model("a", "aligned", dict.fromkeys(keys, (1.0, 3)))]
    models += [
        Model(f"m{k}", "misaligned", {key: (0.1 * place + k / 7, 3 + k) for place, key in enumerate(keys)})
        for k in range(5)
    ]
    with gap_database(keys, models) as connection:
        found = []
        for threads in (1, 2, 4):
            connection.execute(f"set threads = {threads}")
            found.append(connection.execute("select example_id, gap_abs, gap_rel from gap order by 1").fetchall())
    assert found[0] == found[1] == found[2]
