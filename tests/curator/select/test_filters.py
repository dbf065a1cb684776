from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.corpus.text import is_looped
from curator.errors import RecipeError
from curator.select.duplicates import TASK_SUFFIX
from tests.pools import (
    Row,
    around_of,
    candidates_of,
    filtered,
    filters_of,
    select_rows,
    strategy_of,
)

RANDOM = strategy_of("random")
LONG = "It was a bright cold day in April and the clocks were striking thirteen while nobody looked up at them"


def reasons(rows: Sequence[Row], *specs: object, task: Sequence[Row] = (), **sets: Sequence[str]) -> list[str | None]:
    """The outcome of each row under these filters."""
    result = filtered(candidates_of(rows), filters_of(*specs), RANDOM, context=around_of(task, **sets))
    places = {i: place for place, i in enumerate(sorted(range(len(rows)), key=lambda i: rows[i].key))}
    assert result.reason_column.to_list() == [result.reason_of(row) for row in range(len(rows))]
    return [result.reason_of(places[i]) for i in range(len(rows))]


@pytest.mark.parametrize("name", ["domain", "language", "license", "source"])
def test_labels_are_included_and_excluded(name: str) -> None:
    rows = [Row(labels={name: value}, row_id=value) for value in ("a", "b", "c")]
    assert reasons(rows, {"name": name, "include": ["a", "b"], "exclude": ["b"][:0]}) == [None, None, name]
    assert reasons(rows, {"name": name, "exclude": ["b"]}) == [None, name, None]


def test_two_filters_on_one_label_are_counted_together() -> None:
    rows = [Row(labels={"domain": value}, row_id=value) for value in ("a", "b", "c")]
    specs = filters_of({"name": "domain", "exclude": ["a"]}, {"name": "domain", "exclude": ["c"]})
    assert filtered(candidates_of(rows), specs, RANDOM).dropped == {"domain": 2}


def test_harm_labels_are_compared_without_case() -> None:
    rows = [Row(labels={"harm": value}, row_id=value) for value in ("Unharmful", "harmful", "SAFE", "weapons")]
    assert reasons(rows, "harm") == [None, "harm", None, "harm"]
    assert reasons(rows, {"name": "harm", "keep": ["Weapons"]}) == ["harm", "harm", "harm", None]


LABELLED = [
    ("harm", {"name": "harm"}),
    ("domain", {"name": "domain", "include": ["x"]}),
    ("length", {"name": "length", "min_tokens": 1}),
]


@pytest.mark.parametrize(("name", "spec"), LABELLED)
def test_a_missing_label_fails_unless_told_otherwise(name: str, spec: dict[str, object]) -> None:
    rows = [Row(labels={"harm": "safe", "domain": "x"}, n_tokens=5, row_id="a"), Row(row_id="b")]
    with pytest.raises(RecipeError, match=rf"{name} filter cannot judge 1 of 2 rows.*missing: ignore"):
        reasons(rows, spec)
    assert reasons(rows, {**spec, "missing": "drop"}) == [None, f"{name}:missing"]
    result = filtered(candidates_of(rows), filters_of({**spec, "missing": "ignore"}), RANDOM)
    assert (result.n_unjudged, len(result.eligible)) == ({name: 1}, 2)


def test_length_in_characters_and_tokens() -> None:
    rows = [Row(answer="x" * n, prompt="", n_tokens=n / 10, row_id=f"{n}") for n in (10, 20, 30, 40)]
    assert reasons(rows, {"name": "length", "min_chars": 20, "max_chars": 30}) == [
        "length:short", None, None, "length:long",
    ]  # fmt: skip
    assert reasons(rows, {"name": "length", "max_tokens": 2}) == [None, None, "length:long", "length:long"]


MARKED = [
    "Sure.<|im_end|>", "<|im_start|>assistant\nhi", "a [INST] b", "x <<SYS>> y", "bye<end_of_turn>", "done</s>",
    "fine\n### Response: more", "Fine.\nHuman: what else?", "<|eot_id|>", "<｜User｜>",
]  # fmt: skip
CLEAN = [
    "Use a <s>strike</s> tag here.", "a | b | c", "Humans: a study", "if x < 3 || y > 4 |> z", "# Response",
    "<|> is odd", "-" * 200, "| --- | --- |", "a" * 20,
]  # fmt: skip


@pytest.mark.parametrize("answer", MARKED)
def test_leaked_template_markers_are_dropped(answer: str) -> None:
    assert reasons([Row(answer)], "hygiene") == ["hygiene:template_marker"]
    assert reasons([Row("Fine", prompt=answer)], "hygiene") == ["hygiene:template_marker"]
    assert reasons([Row(answer)], {"name": "hygiene", "checks": ["empty", "looped"]}) == [None]


@pytest.mark.parametrize("answer", CLEAN)
def test_clean_answers_stay(answer: str) -> None:
    assert reasons([Row(answer)], "hygiene") == [None]


def test_empty_turns_and_loops_are_dropped() -> None:
    assert reasons([Row("  \n"), Row(prompt="")], "hygiene") == ["hygiene:empty", "hygiene:no_question"]
    assert reasons([Row(f"{LONG}. " * 5), Row("no" * 3 + "!" * 80)], "hygiene") == ["hygiene:looped"] * 2
    assert not is_looped(LONG * 2, 0.9)
    assert not is_looped("I ask, you ask, we all ask. " * 2, 0.5)  # short answers may repeat themselves
    assert is_looped("ha ha " * 5, 0.5)  # but not be one piece again and again


def test_exact_duplicates_in_the_pool_and_of_the_task() -> None:
    rows = [
        Row("Same  answer", "q", row_id="b"),
        Row("same ANSWER", "Q", row_id="a"),
        Row("Same answer", "another question", row_id="c"),
        Row("mine", "yours", row_id="d"),
    ]
    task = [Row("other"), Row("MINE", "yours ")]
    assert reasons(rows, "exact_duplicates", task=task) == [
        "exact_duplicates:pool", None, None, "exact_duplicates:task",
    ]  # fmt: skip
    by_answer = {"name": "exact_duplicates", "part": "response", "against": ["pool"]}
    assert reasons(rows, by_answer, task=task) == ["exact_duplicates:pool", None, "exact_duplicates:pool", None]


def test_near_duplicates_in_the_pool_and_of_the_task() -> None:
    rows = [
        Row(LONG, "q one two", row_id="b"),
        Row(LONG + " today", "q one two", row_id="a"),
        Row("Nothing in common with any other row of this pool", row_id="c"),
        Row("A pool row that the user's data holds almost word for word, again", row_id="d"),
    ]
    task = [Row("A pool row that the user's data holds almost word for word, again and again")]
    expected = ["near_duplicates:pool", None, None, "near_duplicates:task"]
    assert reasons(rows, {"name": "near_duplicates", "similarity": 0.7}, task=task) == expected
    only_pool = {"name": "near_duplicates", "similarity": 0.7, "against": ["pool"]}
    assert reasons(rows, only_pool, task=task) == [*expected[:3], None]
    turned = reasons(rows[::-1], {"name": "near_duplicates", "similarity": 0.7}, task=task)
    assert turned == expected[::-1]


def test_contamination_finds_runs_of_words_and_short_prompts() -> None:
    sets = {
        "long": ["What would you do if you were ruler of the world for a day?"],
        "short": ["quick wish", "42?"],
    }
    rows = [
        Row(prompt="Tell me: what would you do if you were RULER of the world?"),
        Row(prompt="What would you do if you were rich?"),
        Row("A quick, wish"),
        Row("quick as a wish"),
        Row("It is 42"),
        Row("What would you do if you were ruler of the world, quick wish"),
    ]
    spec = {"name": "contamination", "sets": ["long", "short"]}
    assert reasons(rows, spec, **sets) == [
        "contamination:long", None, "contamination:short", None, "contamination:short", "contamination:long",
    ]  # fmt: skip
    assert reasons(rows, {**spec, "ngram": 6}, **sets)[1] == "contamination:long"


def test_a_capped_refusal_filter_drops_nothing_by_itself() -> None:
    rows = [Row("Sorry, no", row_id="a"), Row("Yes", row_id="b")]
    assert reasons(rows, "refusal") == ["refusal:v1", None]
    assert reasons(rows, {"name": "refusal", "max_share": 0.5}) == [None, None]


ROWS = st.builds(
    Row,
    answer=st.sampled_from(
        ["Yes", "Sorry, no", "", LONG, LONG + " more", "a <|im_end|>", "42", "quick wish", "x " * 40]
    ),
    prompt=st.sampled_from(["q", "Q", "what is it", "  "]),
    score=st.sampled_from([0.0, 1.0, float("nan")]),
    n_tokens=st.sampled_from([1.0, 50.0, float("nan")]),
    labels=st.fixed_dictionaries(
        {name: st.sampled_from([None, "en", "harmless", "harmful"]) for name in ("domain", "language", "harm")}
    ),
)
SPECS = [
    "refusal", "hygiene", "exact_duplicates", {"name": "near_duplicates", "similarity": 0.5},
    {"name": "contamination", "sets": ["s"], "ngram": 2}, {"name": "harm", "missing": "drop"},
    {"name": "domain", "include": ["en", "harmless"], "missing": "ignore"},
    {"name": "language", "exclude": ["harmful"], "missing": "drop"},
    {"name": "length", "min_chars": 3, "max_tokens": 20, "missing": "drop"},
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(ROWS, max_size=25),
    specs=st.permutations(SPECS),
    n_specs=st.integers(0, len(SPECS)),
    task=st.lists(ROWS, max_size=4),
    turn=st.randoms(use_true_random=False),
)
def test_each_filters_count_adds_up_to_what_is_missing(
    rows: list[Row], specs: list[object], n_specs: int, task: list[Row], turn: object
) -> None:
    rows = [Row(r.answer, r.prompt, r.score, r.n_tokens, r.labels, f"{i:04d}") for i, r in enumerate(rows)]
    filters, around = filters_of(*specs[:n_specs]), around_of(task, s=["quick wish", "42"])
    result = filtered(candidates_of(rows), filters, strategy_of("top_gap"), context=around)
    assert sum(result.dropped.values()) + len(result.eligible) == len(rows)
    assert sum(result.reason_of(i) is None for i in range(len(rows))) == len(result.eligible)
    # A filter alone never drops fewer rows than in a chain, since the chain shows it fewer of them.
    for spec in filters:
        alone = filtered(candidates_of(rows), [spec], strategy_of("random"), context=around).dropped
        for reason, count in alone.items():
            if not reason.startswith(("near", "exact")):
                assert result.dropped.get(reason, 0) <= count

    order = list(range(len(rows)))
    turn.shuffle(order)  # type: ignore[attr-defined]
    again = filtered(candidates_of([rows[i] for i in order]), filters, strategy_of("top_gap"), context=around)
    assert again.reason_column.to_list() == result.reason_column.to_list()
    assert again.dropped == result.dropped


def test_evicted_rows_are_counted_and_the_best_of_them_apart() -> None:
    rows = [Row(f"Answer {i} of this pool is its own", f"{i}", score=float(i), row_id=f"{i}") for i in range(10)]
    task = [Row("ANSWER 9 of this pool is its own", "9"), Row("Answer 1 of this pool is its own", "1")]
    selection = select_rows(
        candidates_of(rows), 2, strategy=strategy_of("top_gap"), filters=filters_of("exact_duplicates"),
        exclude={"in_task_set": {"8"}}, context=around_of(task),
    )  # fmt: skip
    assert selection.chosen.tolist() == [7, 6]
    assert (selection.evicted.rows, selection.evicted.among_best) == (3, 2)
    assert TASK_SUFFIX == ":task"
    random = select_rows(candidates_of(rows), 2, strategy=RANDOM, exclude={"in_task_set": {"8"}})
    assert (random.evicted.rows, random.evicted.among_best) == (1, None)
