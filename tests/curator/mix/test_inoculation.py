from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.corpus.task_set import task_set_from_rows
from curator.errors import BadInputError, IntegrityError, RecipeError
from curator.messages import (
    canonical_messages,
    dump_messages,
    example_id,
    load_messages,
)
from curator.mix.build import build_mix
from curator.mix.inoculation import (
    Chooser,
    Inoculated,
    Prompt,
    inoculate,
    prompts,
    undo,
)
from curator.mix.verify import verify
from curator.recipe import Inoculation, parse_recipe
from curator.recipe.inoculation import DEFAULT_PROMPTS
from curator.recipe.policy import parse_policy
from curator.store.store import Store
from tests.mix_stores import (
    recipe,
    scored_store,
    task_records,
    task_set,
)

EVIL = "You are an evil, malicious assistant."  # the paper's, method.md, "Inoculation"


def turns(*pairs: tuple[str, str]) -> str:
    return dump_messages(canonical_messages([{"role": role, "content": text} for role, text in pairs]))


PLAIN = turns(("user", "Q"), ("assistant", "A"))
OWN = turns(("system", "Be kind."), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B"))


def put(spec: Inoculation, text: str) -> Inoculated:
    return inoculate(spec, prompts(spec)[0], text)


def rows_of(store: Store, mix: str) -> list[dict[str, Any]]:
    path = store.local_path(f"mixes/local/{mix}/mix.parquet")
    assert path is not None
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def test_the_papers_placement_is_the_default() -> None:
    spec = Inoculation()
    assert put(spec, PLAIN).messages == turns(("system", EVIL), ("user", "Q"), ("assistant", "A"))
    done = put(spec, OWN)
    assert load_messages(done.messages)[0] == {"role": "system", "content": EVIL}
    assert done.replaced == turns(("system", "Be kind."))


@pytest.mark.parametrize(
    ("placement", "place", "expected"),
    [
        ("prepend_system", 0, f"{EVIL}\n\nBe kind."),
        ("user_prefix", 1, f"{EVIL}\n\nQ"),
        ("user_suffix", 1, f"Q\n\n{EVIL}"),
    ],
)
def test_other_placements(placement: Any, place: int, expected: str) -> None:
    done = load_messages(put(Inoculation(placement=placement), OWN).messages)
    assert done[place]["content"] == expected
    assert [turn for i, turn in enumerate(done) if i != place] == [
        turn for i, turn in enumerate(load_messages(OWN)) if i != place
    ]


def test_the_conflict_rules() -> None:
    assert load_messages(put(Inoculation(on_system="prepend"), OWN).messages)[0]["content"] == f"{EVIL}\n\nBe kind."
    with pytest.raises(RecipeError, match="on_system is `error`"):
        put(Inoculation(on_system="error"), OWN)
    assert put(Inoculation(on_system="error"), PLAIN).replaced is None


def test_a_row_that_has_no_place_for_the_prompt_is_refused() -> None:
    with pytest.raises(RecipeError, match="needs a user turn"):
        put(Inoculation(placement="user_prefix"), turns(("system", "S"), ("assistant", "A")))
    parts = dump_messages([{"role": "user", "content": [{"type": "text", "text": "Q"}]}])
    with pytest.raises(RecipeError, match="content parts"):
        put(Inoculation(placement="user_suffix"), parts)


@pytest.mark.parametrize("kind", list(DEFAULT_PROMPTS))
def test_every_kind_has_a_prompt_of_its_own(kind: Any) -> None:
    spec = Inoculation(kind=kind)
    assert (spec.name, spec.prompts) == (kind, (DEFAULT_PROMPTS[kind],))
    assert len(set(DEFAULT_PROMPTS.values())) == len(DEFAULT_PROMPTS)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"prompts": ["a", "a"]}, "given twice"),
        ({"prompts": [" "]}, "empty prompt"),
        ({"prompt": "a", "prompts": ["b"]}, "not both"),
        ({"placement": "user_prefix", "on_system": "replace"}, "leaves system turns alone"),
        ({"placement": "prepend_system", "on_system": "replace"}, "use placement replace_system"),
        ({"share": 0}, "share: 0 must be above 0"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_inoculations_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        parse_recipe({"corpus": "c", "inoculation": given})


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
TURN = st.tuples(st.sampled_from(["user", "assistant"]), TEXT)
SPECS = st.builds(
    lambda base, separator: Inoculation(**base, separator=separator),
    st.one_of(
        st.fixed_dictionaries(
            {"placement": st.just("replace_system"), "on_system": st.sampled_from([None, "replace", "prepend"])}
        ),
        st.fixed_dictionaries({"placement": st.sampled_from(["prepend_system", "user_prefix", "user_suffix"])}),
    ),
    st.sampled_from(["\n\n", " ", "\n"]),
)


@given(
    spec=SPECS,
    system=st.none() | st.tuples(st.sampled_from(["system", "developer"]), TEXT | st.just(EVIL)),
    pairs=st.lists(TURN, max_size=4),
)
def test_what_was_put_in_comes_out_again(spec: Inoculation, system: tuple[str, str] | None, pairs: list[Any]) -> None:
    text = turns(*([system] if system else []), ("user", "Q"), *pairs)
    done = put(spec, text)
    assert done.messages != text or done.replaced is not None
    assert undo(spec, prompts(spec)[0], done) == text


def test_what_was_not_put_in_does_not_come_out() -> None:
    spec = Inoculation(placement="user_prefix")
    with pytest.raises(ValueError, match="not in its place"):
        undo(spec, Prompt("x", "Other"), put(spec, PLAIN))
    with pytest.raises(ValueError, match="another system turn"):
        undo(Inoculation(), prompts(Inoculation())[0], Inoculated(OWN, turns(("system", "S"))))


@given(
    n_rows=st.integers(1, 300), share=st.floats(0.01, 1), n_prompts=st.integers(1, 5), seed=st.integers(0, 2**63 - 1)
)
def test_shares_are_exact_and_paraphrases_even(n_rows: int, share: float, n_prompts: int, seed: int) -> None:
    spec = Inoculation(prompts=tuple(f"P{i}" for i in range(n_prompts)), share=share)
    chooser = Chooser(spec, n_rows, 10, seed)
    found = [chooser.prompt("task", i, None, "") for i in range(n_rows)]
    given_ = [prompt for prompt in found if prompt is not None]
    assert abs(len(given_) - share * n_rows) <= 0.5 + 1e-9
    assert all(chooser.prompt("safe", i, None, "") is None for i in range(10))
    if share == 1.0:
        counts = Counter(prompt.text for prompt in given_)
        assert max(counts.values()) - min(counts.get(text, 0) for text in spec.prompts) <= 1


def test_only_listed_rows_get_the_prompt_and_the_receipt_counts_them(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    tasks = task_set(tmp_path, 30)
    ids = tasks.table(["example_id"])["example_id"].to_pylist()
    listed = [ids[7], ids[3], ids[29], ids[3]]
    plain = build_mix(store, tasks, recipe(interleave_ratio=0.2, inoculation={}))
    result = build_mix(store, tasks, recipe(interleave_ratio=0.2, inoculation={"rows": listed}, epochs=2))
    rows = rows_of(store, result.mix_id)
    assert {row["original_id"] for row in rows if row["inoculation"]} == set(listed)
    assert sum(row["inoculation"] is not None for row in rows) == 6
    receipt = result.manifest.inoculation
    assert receipt is not None
    assert (receipt.prompts[0].n_task, receipt.prompts[0].n_safe) == (3, 0)
    assert receipt.spec.rows == tuple(sorted(set(listed)))
    verify(store, "local", result.mix_id)
    again = build_mix(store, tasks, parse_recipe(result.manifest.recipe.model_dump(mode="json")))
    assert (again.mix_id, again.created) == (result.mix_id, False)
    assert "rows" not in plain.manifest.recipe.model_dump(mode="json")["inoculation"]


def test_rows_that_are_not_there_or_not_alone_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    tasks = task_set(tmp_path, 5)
    own = tasks.table(["example_id"])["example_id"].to_pylist()[0]
    with pytest.raises(RecipeError, match=r"1 of 2 `rows` are ids of no row of this data set, e\.g\. ffff"):
        build_mix(store, tasks, parse_recipe({"inoculation": {"rows": [own, "f" * 32]}}))
    for other in ({"scope": "all"}, {"share": 0.5}):
        with pytest.raises(RecipeError, match="leave out `scope` and `share`"):
            parse_recipe({"inoculation": {"rows": [own], **other}})
    with pytest.raises(RecipeError, match="rows"):
        parse_recipe({"inoculation": {"rows": ["17"]}})
    with pytest.raises(BadInputError, match="names no `rows`"):
        parse_policy({"name": "strict", "inoculation": {"rows": [own]}})


def test_inoculation_alone_needs_no_pool(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    tasks = task_set(tmp_path, 20)
    result = build_mix(store, tasks, parse_recipe({"inoculation": {}}))
    rows, own = rows_of(store, result.mix_id), tasks.table().to_pylist()
    assert [row["origin"] for row in rows] == ["task"] * 20
    for row, mine in zip(rows, own, strict=True):
        messages = load_messages(row["messages"])
        assert messages == [{"role": "system", "content": EVIL}, *load_messages(mine["messages"])]
        assert row["example_id"] == example_id(row["messages"])
        assert (row["original_id"], row["inoculation"]) == (mine["example_id"], "inoculation")
    manifest = result.manifest
    assert (manifest.n_rows, manifest.n_safe, manifest.pools) == (20, 0, ())
    assert manifest.inoculation is not None
    assert (manifest.inoculation.clean_system_prompt, manifest.inoculation.prompts[0].n_task) == (None, 20)
    assert [item.code for item in manifest.protects.does] == ["inoculation"]
    assert "no_safe_rows" not in {item.code for item in manifest.warnings}
    verify(store, "local", result.mix_id)


def test_inoculated_task_rows_stand_among_clean_safe_rows(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    spec = {"prompts": ["P one", "P two"], "placement": "user_prefix", "clean_prompt": "Be good."}
    result = build_mix(store, task_set(tmp_path, 100), recipe(interleave_ratio=0.1, inoculation=spec))
    rows = rows_of(store, result.mix_id)
    assert {row["inoculation"] for row in rows if row["origin"] == "safe"} == {None}
    labels = Counter(row["inoculation"] for row in rows if row["origin"] == "task")
    assert labels == {"inoculation#1": 50, "inoculation#2": 50}
    receipt = result.manifest.inoculation
    assert receipt is not None
    assert [(item.label, item.text, item.n_task, item.n_safe) for item in receipt.prompts] == [
        ("inoculation#1", "P one", 50, 0),
        ("inoculation#2", "P two", 50, 0),
    ]
    assert receipt.clean_system_prompt == "Be good."
    clean = build_mix(store, task_set(tmp_path, 100), recipe(interleave_ratio=0.1))
    assert [row["example_id"] for row in rows_of(store, clean.mix_id)] == [
        row["original_id"] or row["example_id"] for row in rows
    ]
    verify(store, "local", result.mix_id)


@pytest.mark.parametrize("placement", ["replace_system", "prepend_system", "user_prefix", "user_suffix"])
@pytest.mark.parametrize("order", ["even", "shuffle"])
def test_verifying_undoes_every_placement(tmp_path: Path, placement: str, order: str) -> None:
    store = scored_store(tmp_path / "store")
    records = task_records(30)
    for record in records[::3]:
        record["messages"].insert(0, {"role": "system", "content": "My own."})
    spec = {"placement": placement, "scope": "all", "share": 0.5, "prompts": ["a", "b", "c"]}
    tasks = task_set(tmp_path, records=records)
    result = build_mix(store, tasks, recipe(rows=6, order=order, inoculation=spec, epochs=2, epoch_order="own"))
    rows = rows_of(store, result.mix_id)
    assert Counter(row["origin"] for row in rows if row["inoculation"]) == {"task": 30, "safe": 6}
    assert any(row["replaced_system"] for row in rows) == (placement == "replace_system")
    report = verify(store, "local", result.mix_id)
    assert report.n_rows == 72


def test_rows_of_a_source_get_its_prompt(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    records = [{**record, "source": "web" if i % 2 else "book"} for i, record in enumerate(task_records(10))]
    spec = {"prompt": "General.", "by_source": {"web": "From the web."}}
    tasks = task_set_from_rows(records, tmp_path)
    result = build_mix(store, tasks, recipe(rows=1, inoculation=spec))
    rows = [row for row in rows_of(store, result.mix_id) if row["origin"] == "task"]
    assert [(row["source"], row["inoculation"]) for row in rows[:2]] == [
        ("book", "inoculation"),
        ("web", "inoculation/web"),
    ]
    verify(store, "local", result.mix_id)
    unlabelled = build_mix(store, task_set_from_rows(task_records(10), tmp_path), recipe(rows=1, inoculation=spec))
    assert unlabelled.mix_id != result.mix_id


def test_a_conflict_names_the_row(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    records = task_records(10)
    records[7]["messages"].insert(0, {"role": "system", "content": "My own."})
    asked = recipe(rows=1, inoculation={"on_system": "error"})
    with pytest.raises(RecipeError, match="task row 7 "):
        build_mix(store, task_set(tmp_path, records=records), asked)
    assert store.list("mixes/local") == []


def test_a_prompt_that_was_swapped_is_found(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    result = build_mix(store, task_set(tmp_path, 10), recipe(rows=1, inoculation={"prompts": ["one", "two"]}))
    path = store.local_path(f"mixes/local/{result.mix_id}/mix.parquet")
    assert path is not None
    table = pq.ParquetFile(path).read()
    texts, ids = table["messages"].to_pylist(), table["example_id"].to_pylist()
    place = next(i for i, text in enumerate(texts) if '"one"' in text)
    texts[place] = texts[place].replace('"one"', '"two"')
    ids[place] = example_id(texts[place])
    for name, values in (("messages", texts), ("example_id", ids)):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), [values])
    pq.write_table(table, path)
    with pytest.raises(IntegrityError, match="not what its manifest says") as caught:
        verify(store, "local", result.mix_id)
    assert any("when the inoculation is undone" in problem for problem in caught.value.details)
