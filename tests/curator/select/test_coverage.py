"""The `coverage` strategy: an exact reference for small cases, its two ends, caps and amounts."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.select.select import PoolSelection
from tests.pools import Row, candidates_of, chosen_ids, filters_of, select_rows, strategy_of

WORDS = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=5).map(" ".join)
SCORES = st.sampled_from([-1.0, 0.0, 0.25, 1.0, 1.0 + 2.0**-52, 3.5])
CASES = st.lists(st.tuples(SCORES, WORDS), max_size=14)


def rows_of(case: Sequence[tuple[float, str]]) -> list[Row]:
    return [Row(f"answer {i}", prompt, score, 1 + i % 3, row_id=f"{i:02d}") for i, (score, prompt) in enumerate(case)]


def chosen(rows: Sequence[Row], n: int, spread: float, among: float = 4.0, **options: object) -> list[str]:
    candidates = candidates_of(rows)
    strategy = strategy_of({"name": "coverage", "spread": spread, "among": among})
    return chosen_ids(candidates, select_rows(candidates, n, strategy=strategy, **options))  # type: ignore[arg-type]


def reference(rows: Sequence[Row], n: int, spread: float, among: float) -> set[str]:
    """The definition as it is written, in whole numbers and fractions: each step looks at every candidate."""
    pool = sorted(rows, key=lambda row: (-row.score, row.key))[: math.ceil(among * n)]
    words = {row.key: set(row.prompt.split()) or {""} for row in pool}
    held = Counter(word for found in words.values() for word in found)
    weight = {
        word: math.floor(256 * (1 + math.log((len(pool) + 1) / (n_rows + 1))) + 0.5) for word, n_rows in held.items()
    }
    taken: Counter[str] = Counter()
    found: list[str] = []
    lowest = min((row.score for row in pool), default=0.0)

    def key(row: Row) -> tuple[float, float, float, str]:
        own = words[row.key]
        new = sum(weight[word] * (2**20 // (1 + taken[word])) for word in own)
        novelty = float(Fraction(new, sum(weight[word] for word in own) * 2**20))
        factor = 1.0 - spread * (1.0 - novelty)
        return (-(row.score - lowest) * factor, -factor, -row.score, row.key)

    while len(found) < n:
        best = min((row for row in pool if row.key not in found), key=key)
        found.append(best.key)
        taken.update(words[best.key])
    return set(found)


@settings(max_examples=200, deadline=None)
@given(
    case=CASES, share=st.floats(0, 1), spread=st.sampled_from([0.0, 0.3, 0.7, 1.0]), among=st.sampled_from([1, 1.5, 4])
)
def test_a_slow_and_plain_choice_finds_the_same_rows(
    case: list[tuple[float, str]], share: float, spread: float, among: float
) -> None:
    rows = rows_of(case)
    n = round(share * len(rows))
    assert set(chosen(rows, n, spread, among)) == reference(rows, n, spread, among)


@settings(max_examples=100, deadline=None)
@given(case=CASES, share=st.floats(0, 1), capped=st.booleans())
def test_without_spread_it_is_top_gap(case: list[tuple[float, str]], share: float, capped: bool) -> None:
    rows = [
        Row("Sorry" if i % 3 else "Yes", row.prompt, row.score, 2, row_id=row.key)
        for i, row in enumerate(rows_of(case))
    ]
    options = {"filters": filters_of(*[{"name": "refusal", "max_share": 0.4}] * capped), "when_short": "as_many"}
    candidates = candidates_of(rows)

    def found(strategy: object) -> PoolSelection:
        n = round(share * len(rows))
        return select_rows(candidates, n, strategy=strategy_of(strategy), **options)  # type: ignore[arg-type]

    one, two = found({"name": "coverage", "spread": 0}), found("top_gap")
    assert one.chosen.tolist() == two.chosen.tolist()
    assert (one.n_short, one.ranked, one.evicted) == (two.n_short, two.ranked, two.evicted)


def subject(name: str, scores: Sequence[float]) -> list[Row]:
    return [
        Row(f"answer {i}", f"Tell me about {name} {name}{i}", s, 1, row_id=f"{name}{i}") for i, s in enumerate(scores)
    ]


def test_a_subject_of_the_best_scores_does_not_take_every_place() -> None:
    rows = [*subject("tax", [1.0, 0.99, 0.98, 0.97, 0.96]), *subject("bees", [0.9, 0.89]), *subject("rain", [0.8])]
    rows += subject("noise", [0.0] * 20)
    assert chosen(rows, 4, 0.0) == ["tax0", "tax1", "tax2", "tax3"]
    assert {name[:-1] for name in chosen(rows, 4, 1.0)} == {"tax", "bees", "rain"}
    # A row of no gap is never worth its novelty.
    assert not any(name.startswith("noise") for name in chosen(rows, 8, 1.0))
    # Few candidates leave little to choose from.
    assert chosen(rows, 4, 1.0, among=1.0) == chosen(rows, 4, 0.0)


def test_of_equal_scores_the_unlike_come_first_and_the_size_of_scores_does_not_matter() -> None:
    rows = [*subject("tax", [0.5] * 4), *subject("bees", [0.5] * 4)]
    assert {name[:-1] for name in chosen(rows, 2, 0.5)} == {"tax", "bees"}
    rows = [*subject("tax", [5, 4, 3]), *subject("bees", [4, 1, 0])]
    larger = [Row(row.answer, row.prompt, 16 * row.score - 128, row.n_tokens, row_id=row.key) for row in rows]
    for spread in (0.2, 0.6, 1.0):
        assert chosen(rows, 3, spread) == chosen(larger, 3, spread)


def test_a_cap_on_refusals_and_a_budget_of_tokens_hold() -> None:
    rows = [Row("Sorry" if i % 2 else "Yes", f"matter {i % 3}", 10.0 - i, 3, row_id=f"{i:02d}") for i in range(20)]
    candidates = candidates_of(rows)
    cap = filters_of({"name": "refusal", "max_share": 0.25})
    found = select_rows(candidates, 8, strategy=strategy_of("coverage"), filters=cap)
    assert sum(row % 2 for row in found.chosen) <= 2
    assert len(found.chosen) == 8
    short = select_rows(candidates, 20, strategy=strategy_of("coverage"), filters=cap, when_short="as_many")
    plain = select_rows(candidates, 20, strategy=strategy_of("top_gap"), filters=cap, when_short="as_many")
    assert len(short.chosen) == len(plain.chosen)
    within = select_rows(candidates, tokens=20, strategy=strategy_of("coverage"))
    assert len(within.chosen) == 6


@pytest.mark.parametrize("setting", [{"spread": 1.5}, {"spread": -0.1}, {"among": 0.5}, {"among": 1000}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        strategy_of({"name": "coverage", **setting})
