"""Recipes with filters, strategies, ensembles and amounts, from the store to a verified mix."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.errors import (
    BadInputError,
    MissingError,
    NotEnoughRowsError,
    RecipeError,
)
from curator.mix.build import build_mix, plan_mix
from curator.mix.verify import verify
from curator.select.eval_sets import read_evaluation
from curator.store.schema import EXAMPLES
from curator.store.store import Store, arrow_schema
from tests.gap_stores import write_corpus, write_scorer
from tests.mix_stores import (
    answer_of,
    recipe,
    scored_store,
    task_records,
    task_set,
)

N_POOL = 40
DOMAINS = ("art", "law", "zoo")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return scored_store(tmp_path / "store")


def label(store: Store, **columns: list[str | None]) -> None:
    """Give the corpus `chats` labels, by row in file order."""
    path = "corpora/chats/part-0.parquet"
    table = store.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, arrow_schema(EXAMPLES).field(name), pa.array(values, pa.string()))
    store.write_table(path, table, EXAMPLES)


def safe_rows(store: Store, mix: str) -> list[dict[str, Any]]:
    path = store.local_path(f"mixes/local/{mix}/mix.parquet")
    assert path is not None
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return [row for row in rows if row["origin"] == "safe"]


def evaluation(store: Store, name: str, text: str) -> None:
    store.write_bytes(f"evaluations/{name}", text.encode())


STRATEGIES = [
    "random",
    {"name": "threshold", "min": 0.5},
    {"name": "quantile_band", "low": 0.5, "high": 0.9},
    {"name": "weighted", "temperature": 0.2},
    {"name": "stratified", "by": "domain", "quotas": "equal"},
    {"name": "diverse", "max_similarity": 0.9},
    {"name": "coverage", "spread": 0.5, "among": 2},
    {"name": "domain_matched", "nearest": 0.5},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda item: item if isinstance(item, str) else item["name"])
def test_every_strategy_makes_a_mix_that_verifies(store: Store, tmp_path: Path, strategy: Any) -> None:
    label(store, domain=[DOMAINS[i % 3] for i in range(N_POOL)])
    asked = recipe(strategy=strategy, rows=6)
    result = build_mix(store, task_set(tmp_path), asked)
    verify(store, "local", result.mix_id)
    pool = result.manifest.pools[0]
    assert pool.n_eligible + sum(pool.dropped.values()) == pool.n_candidates == N_POOL
    assert (pool.chosen, pool.n_distinct, pool.n_short) == (6, 6, 0)
    assert pool.amounts.model_dump() == {
        "asked": "rows", "asked_value": 6.0, "interleave_ratio": 0.06, "mix_share": 6 / 106, "rows": 6, "tokens": 60,
    }  # fmt: skip
    # The manifest's recipe is the whole request: it finds the same mix again.
    assert not build_mix(store, task_set(tmp_path), result.manifest.recipe).created


def test_a_negative_control_needs_its_flag_and_is_marked(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="allow_negative_control: true"):
        recipe(strategy="bottom_gap")
    asked = recipe(strategy="bottom_gap", allow_negative_control=True, rows=2)
    result = build_mix(store, task_set(tmp_path), asked)
    assert [answer_of(row) for row in sorted(safe_rows(store, result.mix_id), key=lambda row: row["rank"])] == [1, 2]
    assert "negative_control" in {warning.code for warning in result.manifest.warnings}
    assert result.manifest.protects.does == ()
    assert result.manifest.protects.does_not[0].code == "negative_control"


def test_filters_are_named_on_rows_and_counted(store: Store, tmp_path: Path) -> None:
    label(
        store,
        harm=["harmful" if i % 10 == 3 else "unharmful" for i in range(N_POOL)],
        language=["de" if i % 4 == 1 else "en" for i in range(N_POOL)],
        license=[None] * 5 + ["mit"] * 35,
    )
    evaluation(store, "probe.txt", "answer number 38 is\n\nnumber 30 is this\n")
    filters = [
        "refusal", "harm", {"name": "language", "include": ["en"]},
        {"name": "license", "include": ["mit"], "missing": "ignore"},
        "hygiene", {"name": "length", "min_chars": 5, "min_tokens": 1},
        "exact_duplicates", "near_duplicates", {"name": "contamination", "sets": ["probe"], "ngram": 4},
    ]  # fmt: skip
    result = build_mix(store, task_set(tmp_path), recipe(filters=filters, rows=3))
    pool = result.manifest.pools[0]
    assert {name: count for name, count in pool.dropped.items() if count} == {
        "refusal:v1": 5, "harm": 4, "language": 8, "contamination:probe": 2, "no_gap": 2,
    }  # fmt: skip
    assert pool.n_passed_unjudged == {"license": 2}
    rows = sorted(safe_rows(store, result.mix_id), key=lambda row: row["rank"])
    assert [answer_of(row) for row in rows] == [36, 35, 34]
    names = [spec if isinstance(spec, str) else spec["name"] for spec in filters]
    assert rows[0]["filters_passed"] == ["refusal:v1", *names[1:]]
    verify(store, "local", result.mix_id)


def test_other_evaluation_prompts_are_another_mix(store: Store, tmp_path: Path) -> None:
    asked = recipe(filters=[{"name": "contamination", "sets": ["probe"]}], rows=3)
    with pytest.raises(MissingError, match=r"no evaluation set 'probe'.*none yet"):
        plan_mix(store, task_set(tmp_path), asked)
    ids = set()
    for text in ("nothing like the pool", "answer number 38 is this"):
        evaluation(store, "probe.txt", text)
        ids.add(plan_mix(store, task_set(tmp_path), asked).mix_id)
    assert len(ids) == 2


def test_evaluation_files_in_lines_of_json(store: Store) -> None:
    lines = '"one"\n{"prompt": "two"}\n\n{"question": "three"}\n{"messages": [{"role": "user", "content": "four"}]}\n'
    evaluation(store, "mixed.jsonl", lines)
    assert read_evaluation(store, "mixed") == ["one", "two", "three", "four"]
    evaluation(store, "bad.jsonl", '"one"\n{"other": 1}\n')
    with pytest.raises(BadInputError, match="line 2: neither a text nor an object"):
        read_evaluation(store, "bad")


def test_copies_of_the_best_rows_in_the_users_file_are_counted_and_told(store: Store, tmp_path: Path) -> None:
    copies = [f"Answer number {n} is this!" for n in (38, 37)]
    near = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]} for text in copies]
    tasks = task_set(tmp_path, records=[*task_records(20), *near])
    asked = recipe(filters=[{"name": "near_duplicates", "against": ["task"], "similarity": 0.9}], rows=2)
    manifest = build_mix(store, tasks, asked).manifest
    assert manifest.pools[0].dropped["near_duplicates:task"] == 2
    assert manifest.pools[0].evicted_by_task_set.model_dump() == {"rows": 2, "among_best": 2}
    assert "best_rows_evicted" in {warning.code for warning in manifest.warnings}


def test_an_amount_in_tokens_is_kept(store: Store, tmp_path: Path) -> None:
    result = build_mix(store, task_set(tmp_path), recipe(tokens=57))  # rows have 10 response tokens each
    amounts = result.manifest.pools[0].amounts
    assert (amounts.asked, amounts.rows, amounts.tokens, result.manifest.n_safe) == ("tokens", 5, 50, 5)
    verify(store, "local", result.mix_id)
    with pytest.raises(NotEnoughRowsError, match=r"500 trained tokens.*hold 310.*at most 310 tokens.*190 more"):
        build_mix(store, task_set(tmp_path), recipe(tokens=500))


@pytest.mark.parametrize("order", ["even", "shuffle"])
def test_as_many_and_cycle(store: Store, tmp_path: Path, order: str) -> None:
    many = build_mix(store, task_set(tmp_path), recipe(interleave_ratio=0.5, when_short="as_many", order=order))
    pool = many.manifest.pools[0]
    assert (pool.chosen, pool.n_short, pool.amounts.asked_value) == (31, 19, 0.5)
    assert "fell_short" in {warning.code for warning in many.manifest.warnings}
    verify(store, "local", many.mix_id)

    asked = recipe(interleave_ratio=0.5, when_short="cycle", max_copies=2, order=order)
    cycled = build_mix(store, task_set(tmp_path), asked)
    counts = Counter(row["example_id"] for row in safe_rows(store, cycled.mix_id))
    assert Counter(counts.values()) == {2: 19, 1: 12}
    ranks = {(row["example_id"], row["rank"]) for row in safe_rows(store, cycled.mix_id)}
    assert len(ranks) == 31
    assert "rows_repeated" in {warning.code for warning in cycled.manifest.warnings}
    verify(store, "local", cycled.mix_id)
    with pytest.raises(NotEnoughRowsError, match=r"each up to 2 times.*at most 62 rows"):
        build_mix(store, task_set(tmp_path), recipe(interleave_ratio=0.7, when_short="cycle", max_copies=2))


def test_a_short_pool_and_a_share_of_the_mix_come_to_rest(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    scored_store(tmp_path / "store", corpus="more")
    pools = [
        {"corpus": "chats", "rows": 60, "when_short": "as_many"},
        {"corpus": "more", "mix_share": 0.05, "strategy": "random", "filters": []},
    ]
    result = build_mix(store, task_set(tmp_path), recipe(pools=pools))
    first, second = result.manifest.pools
    assert (first.chosen, second.chosen) == (31, 7)  # 7 of 138 rows are 5.07 %
    verify(store, "local", result.mix_id)


SCORES = {"gap_rel": 1.95, "gap_abs": 3.9, "sum_gap": 39.0, "gap_contrast": 2.95}


@pytest.mark.parametrize("score", SCORES)
def test_scores_rank_and_stand_on_the_row(store: Store, tmp_path: Path, score: str) -> None:
    ids = [row["example_id"] for row in store.read_table("corpora/chats/part-0.parquet").to_pylist()]
    if score == "gap_contrast":
        with pytest.raises(MissingError, match="no benign scorer"):
            plan_mix(store, task_set(tmp_path), recipe(score=score))
        losses = {key: (10.0 + 0.25 * (i + 1), 10) for i, key in enumerate(ids)}
        write_scorer(store, "chats", "good", "benign", losses, domain="bad-1")
    result = build_mix(store, task_set(tmp_path), recipe(score=score, rows=1))
    (row,) = safe_rows(store, result.mix_id)
    assert answer_of(row) == 38
    assert row["score"] == pytest.approx(SCORES[score] if score != "gap_contrast" else 3.9 - 0.25 * 39 / 10)


ENSEMBLES: list[tuple[Any, float]] = [
    ("median", 3.9), ("min", 1.95), ("max", 5.85),
    ({"reducer": "weighted", "weights": {"bad-2": 3, "bad-1": 1}}, 4.875),
]  # fmt: skip


@pytest.mark.parametrize(("ensemble", "gap"), ENSEMBLES)
def test_ensembles(store: Store, tmp_path: Path, ensemble: Any, gap: float) -> None:
    result = build_mix(store, task_set(tmp_path), recipe(ensemble=ensemble, score="gap_abs", rows=1))
    (row,) = safe_rows(store, result.mix_id)
    assert row["score"] == pytest.approx(gap)
    resolved = result.manifest.recipe.pools[0].ensemble
    if resolved.weights is not None:
        assert sorted(resolved.weights) == sorted(result.manifest.recipe.pools[0].misaligned or ())
    assert plan_mix(store, task_set(tmp_path), result.manifest.recipe).mix_id == result.mix_id


def test_weights_name_scorers_that_stay(store: Store, tmp_path: Path) -> None:
    weights = {"reducer": "weighted", "weights": {"nobody": 1}}
    with pytest.raises(MissingError, match="no misaligned scorer 'nobody'"):
        plan_mix(store, task_set(tmp_path), recipe(ensemble=weights))
    only = {"reducer": "weighted", "weights": {"bad-1": 1}}
    with pytest.raises(BadInputError, match="weight to none"):
        plan_mix(store, task_set(tmp_path), recipe(ensemble=only, hold_out=["bad-1"]))


def test_holding_out_nothing_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"hold_out 'bads' matches no .*their domains: bad-1, bad-2"):
        plan_mix(store, task_set(tmp_path), recipe(hold_out=["bads"]))


def test_labels_that_the_corpus_lacks_fail_the_recipe(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"harm filter cannot judge 35 of 35 rows"):
        plan_mix(store, task_set(tmp_path), recipe(filters=["refusal", "harm"]))


SCRIPT = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[3])])
from curator.mix.build import plan_mix
from curator.recipe import parse_recipe
from curator.store.store import Store
from curator.corpus.task_set import task_set_from_rows
from tests.mix_stores import task_records
store, tasks = Store(sys.argv[1]), task_set_from_rows(task_records(60), sys.argv[2])
filters = ["hygiene", "exact_duplicates", {"name": "near_duplicates", "similarity": 0.6}]
for strategy in ({"name": "weighted", "temperature": 0.3}, "diverse", "domain_matched", "coverage"):
    recipe = parse_recipe({"corpus": "chats", "strategy": strategy, "filters": filters, "rows": 2})
    plan = plan_mix(store, tasks, recipe)
    drawn = plan.drawn[0]
    ids = drawn.data.candidates.ids.texts(drawn.selection.chosen)
    print(plan.mix_id, ids, drawn.selection.result.dropped)
"""


@pytest.mark.slow
def test_other_processes_and_thread_counts_choose_the_same_rows(store: Store, tmp_path: Path) -> None:
    outputs = set()
    for hash_seed, n_cpus in (("0", 1), ("77", os.cpu_count() or 1)):
        arguments = [str(store.local_path("")), str(tmp_path / hash_seed), str(n_cpus)]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": str(n_cpus)},
            cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 4


def test_strategies_without_scores_need_no_scorer(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    write_corpus(store, "chats", [f"Answer {i} about its very own matter {i * 7}." for i in range(30)])
    for strategy in ("domain_matched", {"name": "diverse", "pick": "random"}):
        assert build_mix(store, task_set(tmp_path), recipe(strategy=strategy, rows=2)).created
    with pytest.raises(MissingError, match=r"aligned scorer.*give rows"):
        build_mix(store, task_set(tmp_path), recipe(strategy="random", tokens=10))


@pytest.mark.parametrize(("strategy", "warned"), [("top_gap", True), ("quantile_band", False), ("diverse", True)])
def test_kept_refusals_are_warned_of_where_they_would_rank_high(
    store: Store, tmp_path: Path, strategy: str, warned: bool
) -> None:
    manifest = build_mix(store, task_set(tmp_path), recipe(strategy=strategy, filters=[], rows=1)).manifest
    assert ("refusals_kept" in {warning.code for warning in manifest.warnings}) is warned
