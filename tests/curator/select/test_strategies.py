from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.errors import NotEnoughRowsError, RecipeError
from curator.select.candidates import Candidates
from curator.select.ngrams import hash_words, jaccard, word_ngrams
from curator.select.select import PoolSelection
from tests.pools import (
    NAN,
    Row,
    around_of,
    candidates_of,
    chosen_ids,
    filters_of,
    select_rows,
    strategy_of,
)


def scored(*scores: float) -> Candidates:
    """Rows named a, b, c, ... with these scores."""
    return candidates_of([Row(score=score, row_id=chr(ord("a") + i)) for i, score in enumerate(scores)])


def ids(candidates: Candidates, selection: PoolSelection) -> str:
    return "".join(chosen_ids(candidates, selection))


def pick(candidates: Candidates, n: int, strategy: object, **options: object) -> str:
    return ids(candidates, select_rows(candidates, n, strategy=strategy_of(strategy), **options))  # type: ignore[arg-type]


def test_bottom_gap_is_top_gap_upside_down() -> None:
    rows = scored(1.0, 3.0, NAN, 2.0, 1.0)
    assert pick(rows, 4, "top_gap") == "bdae"
    assert pick(rows, 4, "bottom_gap") == "aedb"


def test_threshold_bounds_are_included() -> None:
    rows = scored(1.0, 2.0, 3.0, 4.0, NAN)
    selection = select_rows(rows, 2, strategy=strategy_of({"name": "threshold", "min": 2, "max": 3, "pick": "top_gap"}))
    assert ids(rows, selection) == "cb"
    assert selection.result.dropped == {"no_gap": 1, "below_bound": 1, "above_bound": 1}
    assert not select_rows(rows, 1, strategy=strategy_of({"name": "threshold", "min": 2})).ranked


def test_a_quantile_band_counts_rows_and_not_values() -> None:
    rows = scored(*(float(i) for i in range(20)))
    selection = select_rows(rows, 3, strategy=strategy_of({"name": "quantile_band", "low": 0.8, "high": 0.95}))
    assert sorted(ids(rows, selection)) == ["q", "r", "s"]
    assert selection.result.dropped == {"no_gap": 0, "below_bound": 16, "above_bound": 1}
    tied = scored(*[1.0] * 10)
    kept = select_rows(tied, 5, strategy=strategy_of({"name": "quantile_band", "low": 0.5, "high": 1.0}))
    assert sorted(ids(tied, kept)) == ["f", "g", "h", "i", "j"]


def test_weighted_draws_follow_the_weights() -> None:
    rows = scored(0.0, np.log(2.0), np.log(4.0), NAN)
    strategy = strategy_of({"name": "weighted", "temperature": 1.0})
    first = Counter(ids(rows, select_rows(rows, 1, strategy=strategy, seed=seed)) for seed in range(700))
    for name, expected in (("a", 100), ("b", 200), ("c", 400)):
        assert abs(first[name] - expected) < 5 * np.sqrt(expected)
    # Without replacement: of two, {b, c} has probability 4/7 * 2/3 + 2/7 * 4/5 = 0.6095.
    pairs = Counter("".join(sorted(ids(rows, select_rows(rows, 2, strategy=strategy, seed=s)))) for s in range(700))
    assert abs(pairs["bc"] - 427) < 5 * np.sqrt(427 * 0.39)


def test_a_low_temperature_is_top_gap_and_draws_are_pinned() -> None:
    rows = scored(*(i / 10 for i in range(12)))
    assert pick(rows, 12, {"name": "weighted", "temperature": 1e-6}) == "lkjihgfedcba"
    assert pick(rows, 6, {"name": "weighted", "temperature": 0.5}, seed=3) == PINNED_WEIGHTED


PINNED_WEIGHTED = "lcdfik"


def by_domain(counts: dict[str, int], lacking: int = 0) -> Candidates:
    domains = [name for name, count in counts.items() for _ in range(count)] + [None] * lacking
    rows = [Row(score=float(i), labels={"domain": domain}, row_id=f"{i:03d}") for i, domain in enumerate(domains)]
    return candidates_of(rows)


def shares(candidates: Candidates, selection: PoolSelection) -> dict[str | None, int]:
    return dict(Counter(candidates.column("domain").gather(selection.chosen).to_list()))


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ("equal", {"art": 4, "law": 3, "zoo": 3}),
        ("proportional", {"art": 5, "law": 3, "zoo": 2}),
        ({"law": 3, "zoo": 1}, {"law": 8, "zoo": 2}),
    ],
)
def test_quotas(quotas: object, expected: dict[str, int]) -> None:
    rows = by_domain({"art": 15, "law": 9, "zoo": 6})
    strategy = strategy_of({"name": "stratified", "by": "domain", "quotas": quotas})
    selection = select_rows(rows, 10, strategy=strategy)
    assert shares(rows, selection) == expected
    # Each value gives its best rows, and ranks run over all of them.
    for value, quota in expected.items():
        own = [i for i, domain in enumerate(rows.column("domain").to_list()) if domain == value]
        assert set(own[-quota:]) <= set(selection.chosen.tolist())
    assert selection.chosen.tolist() == sorted(selection.chosen.tolist(), reverse=True)


def test_rows_without_a_value_fail_or_are_dropped_and_other_values_are_counted() -> None:
    rows = by_domain({"art": 5, "law": 5}, lacking=2)
    with pytest.raises(RecipeError, match=r"2 of 12 rows have no domain.*missing: drop"):
        select_rows(rows, 2, strategy=strategy_of({"name": "stratified", "by": "domain"}))
    spec = {"name": "stratified", "by": "domain", "quotas": {"art": 1}, "missing": "drop"}
    selection = select_rows(rows, 4, strategy=strategy_of(spec))
    assert shares(rows, selection) == {"art": 4}
    assert selection.result.dropped == {"no_gap": 0, "domain:missing": 2, "no_stratum": 5}


def test_a_quota_that_cannot_be_met_is_named_with_numbers_that_fix_it() -> None:
    rows = by_domain({"art": 15, "law": 2})
    strategy = strategy_of({"name": "stratified", "by": "domain", "quotas": "equal"})
    with pytest.raises(NotEnoughRowsError, match=r"quota of domain 'law' \(5 rows asked, 2 there\).*at most 5 rows"):
        select_rows(rows, 10, strategy=strategy)
    assert shares(rows, select_rows(rows, 5, strategy=strategy)) == {"art": 3, "law": 2}
    short = select_rows(rows, 10, strategy=strategy, when_short="as_many")
    assert (shares(rows, short), short.n_short) == ({"art": 3, "law": 2}, 5)


def refusing(*marks: str) -> Candidates:
    """Rows in falling order of score; 'r' marks a refusal."""
    answers = ["Sorry, no" if mark == "r" else "Yes" for mark in marks]
    return candidates_of([Row(a, score=-float(i), row_id=f"{i:02d}") for i, a in enumerate(answers)])


def test_a_cap_on_refusals_is_kept_and_counted() -> None:
    rows = refusing(*"rrrrnnnnnn")
    cap = filters_of({"name": "refusal", "max_share": 0.25})
    selection = select_rows(rows, 4, strategy=strategy_of("top_gap"), filters=cap)
    assert selection.chosen.tolist() == [0, 4, 5, 6]
    assert selection.result.dropped == {"refusal:v1:share<=0.25": 3, "no_gap": 0}
    with pytest.raises(NotEnoughRowsError, match=r"binds is refusal:v1:share<=0.25.*at most 8 rows"):
        select_rows(rows, 9, strategy=strategy_of("top_gap"), filters=cap)
    assert len(select_rows(rows, 8, strategy=strategy_of("top_gap"), filters=cap).chosen) == 8


def near(one: str, two: str) -> float:
    grams = word_ngrams(hash_words([one, two]), 3)
    return jaccard(np.unique(grams.of(0)), np.unique(grams.of(1)))


WORDS = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(WORDS, max_size=15), bound=st.sampled_from([0.0, 0.3, 0.6]), n=st.integers(0, 15))
def test_no_two_diverse_picks_are_nearer_than_the_bound(answers: list[str], bound: float, n: int) -> None:
    rows = [Row(answer, "", score=-float(i), row_id=f"{i:02d}") for i, answer in enumerate(answers)]
    candidates = candidates_of(rows)
    strategy = strategy_of({"name": "diverse", "max_similarity": bound})
    selection = select_rows(candidates, n, strategy=strategy, when_short="as_many")
    chosen = [answers[i] for i in selection.chosen]
    assert all(near(a, b) <= bound for k, a in enumerate(chosen) for b in chosen[:k])
    assert len(chosen) + selection.n_short == n
    assert selection.n_eligible + sum(selection.result.dropped.values()) == len(rows)
    for i, text in enumerate(answers):
        if selection.result.reason_of(i) == "too_similar":
            assert any(near(text, other) > bound for other in chosen)


def test_too_few_different_rows_are_named() -> None:
    rows = candidates_of([Row("one and the same answer", score=float(i), row_id=f"{i}") for i in range(5)])
    with pytest.raises(NotEnoughRowsError, match=r"too_similar \(max_similarity 0.5\).*at most 1 rows"):
        select_rows(rows, 2, strategy=strategy_of("diverse"))


def test_domain_matched_keeps_the_rows_nearest_to_the_users_prompts() -> None:
    prompts = [
        "How do I bake sourdough bread at home?", "What oven temperature suits bread?", "Explain tort law",
        "Who won the cup final?", "Is rye bread healthy?", "Name a planet", "Sum 2 and 3", "", "Fix my bicycle chain",
    ]  # fmt: skip
    rows = candidates_of([Row(prompt=prompt, score=float(i), row_id=f"{i}") for i, prompt in enumerate(prompts)])
    task = [Row(prompt=f"Tell me about {what} bread") for what in ("white", "sourdough", "rye", "dark")]
    strategy = strategy_of({"name": "domain_matched", "nearest": 0.33})
    selection = select_rows(rows, 3, strategy=strategy, context=around_of(task))
    assert sorted(ids(rows, selection)) == ["0", "1", "4"]
    assert selection.result.dropped == {"far_from_task": 6}
    top = strategy_of({"name": "domain_matched", "nearest": 0.33, "pick": "top_gap"})
    assert ids(rows, select_rows(rows, 2, strategy=top, context=around_of(task))) == "41"


def tokened(*tokens: float) -> Candidates:
    return candidates_of([Row(score=-float(i), n_tokens=n, row_id=f"{i:02d}") for i, n in enumerate(tokens)])


def test_a_token_budget_is_never_passed() -> None:
    rows = tokened(10, 20, NAN, 30, 40)
    for budget, expected in ((9, []), (10, [0]), (59, [0, 1]), (60, [0, 1, 3]), (100, [0, 1, 3, 4])):
        selection = select_rows(rows, tokens=budget, strategy=strategy_of("top_gap"))
        assert selection.chosen.tolist() == expected
        assert selection.result.dropped == {"no_gap": 0, "no_token_count": 1}
    with pytest.raises(
        NotEnoughRowsError, match=r"101 trained tokens.*4 rows.*hold 100.*at most 100 tokens.*with 1 more"
    ):
        select_rows(rows, tokens=101, strategy=strategy_of("top_gap"))
    assert select_rows(rows, tokens=130, strategy=strategy_of("top_gap"), when_short="as_many").n_short == 30
    cycled = select_rows(rows, tokens=130, strategy=strategy_of("top_gap"), when_short="cycle", max_copies=2)
    assert cycled.chosen.tolist() == [0, 1, 3, 4, 0, 1]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=150),
    budget=st.integers(0, 600),
    spec=st.sampled_from(["top_gap", "random", {"name": "stratified", "by": "domain"}]),
    capped=st.booleans(),
)
def test_one_row_more_would_pass_the_budget(sizes: list[int], budget: int, spec: object, capped: bool) -> None:
    rows = [
        Row(
            "Sorry" if i % 3 else "Yes",
            score=float(i % 5),
            n_tokens=n,
            labels={"domain": "ab"[i % 2]},
            row_id=f"{i:03d}",
        )
        for i, n in enumerate(sizes)
    ]
    candidates = candidates_of(rows)
    options = {"strategy": strategy_of(spec), "filters": filters_of(*[{"name": "refusal", "max_share": 0.4}] * capped)}
    found = select_rows(candidates, tokens=budget, when_short="as_many", **options)  # type: ignore[arg-type]
    total = sum(sizes[i] for i in found.chosen)
    assert total <= budget
    if not found.n_short:
        if total < budget:
            more = select_rows(candidates, len(found.chosen) + 1, **options).chosen  # type: ignore[arg-type]
            assert sum(sizes[i] for i in more) > budget
    else:
        assert total + found.n_short == budget


def test_cycling_repeats_whole_rounds_up_to_the_cap() -> None:
    rows = scored(3.0, 2.0, 1.0)
    cycled = select_rows(rows, 8, strategy=strategy_of("top_gap"), when_short="cycle", max_copies=3)
    assert ids(rows, cycled) == "abcabcab"
    assert cycled.n_distinct == 3
    with pytest.raises(NotEnoughRowsError, match=r"3 of its 3 rows can be drawn, each up to 3 times.*at most 9 rows"):
        select_rows(rows, 10, strategy=strategy_of("top_gap"), when_short="cycle", max_copies=3)
    with pytest.raises(NotEnoughRowsError, match="at most 0 rows"):
        select_rows(scored(NAN), 1, strategy=strategy_of("top_gap"), when_short="cycle", max_copies=3)


ALL = [
    "random", "top_gap", "bottom_gap", {"name": "threshold", "min": 0.2},
    {"name": "threshold", "max": 1, "pick": "top_gap"},
    {"name": "quantile_band", "low": 0.1, "high": 0.9}, "weighted", {"name": "stratified", "by": "domain"},
    {"name": "stratified", "by": "n_turns", "quotas": "equal", "pick": "random"}, "diverse", "domain_matched",
    "coverage", {"name": "coverage", "spread": 0.4, "among": 1.5},
]  # fmt: skip


def row_list(draw: Sequence[tuple[float, str, int]]) -> list[Row]:
    return [
        Row(text, text, score, n, {"domain": text[:1] or "-"}, f"{i:04d}") for i, (score, text, n) in enumerate(draw)
    ]


@settings(max_examples=80, deadline=None)
@given(
    draw=st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, NAN]), WORDS, st.integers(1, 5)), max_size=25),
    spec=st.sampled_from(ALL),
    n=st.integers(0, 12),
    seed=st.integers(0, 2**63 - 1),
    turn=st.randoms(use_true_random=False),
)
def test_every_strategy_ignores_row_order_and_accounts_for_every_row(
    draw: list[tuple[float, str, int]], spec: object, n: int, seed: int, turn: object
) -> None:
    rows = row_list(draw)
    around = around_of([Row(prompt="two three"), Row(prompt="four")])
    options = {"strategy": strategy_of(spec), "context": around, "seed": seed, "when_short": "as_many"}
    candidates = candidates_of(rows)
    first = select_rows(candidates, n, **options)  # type: ignore[arg-type]
    assert first.n_eligible + sum(first.result.dropped.values()) == len(rows)
    assert len(set(first.chosen.tolist())) == len(first.chosen) == n - first.n_short
    assert all(first.result.reason_of(i) is None for i in first.chosen)
    turn.shuffle(rows)  # type: ignore[attr-defined]
    again = candidates_of(rows)
    second = select_rows(again, n, **options)  # type: ignore[arg-type]
    assert chosen_ids(again, second) == chosen_ids(candidates, first)
    assert second.result.dropped == first.result.dropped
