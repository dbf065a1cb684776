"""An exported mix described for others: `datasets` loads it, and each format's own library accepts its document."""

import datetime
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from curator.errors import IntegrityError
from curator.messages import load_messages
from curator.mix.build import MixResult, build_mix
from curator.mix.cards import (
    BOM_FILE,
    CARD_FILE,
    CROISSANT_FILE,
    bom,
    croissant,
    dataset_card,
    read_data_file,
    write_cards,
)
from curator.mix.files import json_lines, mix_batches
from curator.mix.snippets import KINDS, write_snippet
from curator.store.store import Store
from tests.mix_stores import recipe, scored_store, task_records, task_set

DAY = datetime.date(2026, 1, 2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, MixResult]:
    """A mix with a late row that has tool calls, their answer and a weight."""
    root = tmp_path_factory.mktemp("cards")
    records = task_records(40)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, "x"]}}}
    records[35]["messages"] += [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "c1"},
        {"role": "assistant", "content": "There.", "weight": 0},
    ]
    store = scored_store(root / "store")
    return store, build_mix(store, task_set(root, records=records), recipe(rows=4))


@pytest.fixture(scope="module")
def folder(mixed: tuple[Store, MixResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mix as JSON Lines with every column, and its cards."""
    store, mix = mixed
    data = tmp_path_factory.mktemp("exported") / "mix.jsonl"
    data.write_bytes(b"".join(json_lines(batch) for batch in mix_batches(store, "local", mix.mix_id)))
    write_cards(data, mix.manifest, DAY)
    return data.parent


def stored_rows(store: Store, mix: MixResult) -> list[dict[str, Any]]:
    return [row for batch in mix_batches(store, "local", mix.mix_id) for row in batch.to_pylist()]


def without_nulls(value: Any) -> Any:
    """`datasets` gives every struct all keys; a mix's message has those that it has."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def load(folder: Path, cache: Path) -> list[dict[str, Any]]:
    from datasets import load_dataset  # slow to import

    return [dict(row) for row in load_dataset(str(folder), split="train", cache_dir=str(cache))]


def test_datasets_gives_the_rows_in_order_with_messages_as_structs(
    mixed: tuple[Store, MixResult], folder: Path, tmp_path: Path
) -> None:
    expected = stored_rows(*mixed)
    found = load(folder, tmp_path)
    assert [row["position"] for row in found] == list(range(44))
    assert [without_nulls(row["messages"]) for row in found] == [load_messages(row["messages"]) for row in expected]
    for column in ("origin", "example_id", "pool", "filters_passed"):
        assert [row[column] for row in found] == [row[column] for row in expected], column
    gaps = [(row["gap_rel"], other["gap_rel"]) for row, other in zip(found, expected, strict=True)]
    assert all(a is b is None or a == pytest.approx(b) for a, b in gaps)  # `datasets` may round the last bit
    assert [row["losses"] and len(row["losses"]) for row in found] == [
        row["losses"] and len(row["losses"]) for row in expected
    ]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "datasets"])
def test_every_exported_folder_loads(kind: Any, tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    mix = build_mix(store, task_set(tmp_path, 20), recipe(rows=2))
    write_snippet(store, "local", mix.mix_id, kind, tmp_path / "out")
    found = load(tmp_path / "out", tmp_path / "cache")
    assert [without_nulls(row) for row in found] == [
        {"messages": load_messages(row["messages"])} for row in stored_rows(store, mix)
    ]


def test_another_mix_in_a_folder_of_the_same_name_loads_its_own_rows(tmp_path: Path) -> None:
    """`datasets` keeps what it loaded by the folder's name and its card's front matter."""
    store = scored_store(tmp_path / "store")
    for n_rows in (20, 21):
        mix = build_mix(store, task_set(tmp_path, n_rows), recipe(rows=2))
        write_snippet(store, "local", mix.mix_id, "datasets", tmp_path / str(n_rows) / "out")
        assert len(load(tmp_path / str(n_rows) / "out", tmp_path / "cache")) == n_rows + 2


def test_the_script_of_datasets_loads_its_folder(
    mixed: tuple[Store, MixResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, mix = mixed
    made = write_snippet(store, "local", mix.mix_id, "datasets", tmp_path / "out")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = runpy.run_path(str(tmp_path / "out" / made.main))["data"]
    assert [without_nulls(row["messages"]) for row in data] == [
        load_messages(row["messages"]) for row in stored_rows(store, mix)
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of rdflib, which mlcroissant uses
def test_mlcroissant_accepts_the_metadata_and_reads_the_rows_by_it(
    mixed: tuple[Store, MixResult], folder: Path
) -> None:
    import mlcroissant  # slow to import

    dataset = mlcroissant.Dataset(jsonld=str(folder / CROISSANT_FILE))
    issues = dataset.metadata.ctx.issues
    assert (issues.errors, issues.warnings) == (set(), set())
    assert dataset.metadata.ctx.is_v1_1()
    found = list(dataset.records("rows"))
    expected = stored_rows(*mixed)
    assert [row["rows/example_id"].decode() for row in found] == [row["example_id"] for row in expected]
    contents = [[part["rows/messages/content"] for part in row["rows/messages"]] for row in found]
    assert contents == [
        [(item.get("content") or "").encode() for item in load_messages(row["messages"])] for row in expected
    ]


def test_the_provenance_names_what_the_mix_came_from(mixed: tuple[Store, MixResult], folder: Path) -> None:
    manifest = mixed[1].manifest
    document = json.loads((folder / CROISSANT_FILE).read_text())
    sources = [item["@id"] for item in document["prov:wasDerivedFrom"]]
    (pool,) = manifest.pools
    assert sources == [f"urn:sha256:{manifest.task.sha256}", f"urn:ballast:corpus:chats:{pool.revision}"]
    used = {item["@id"].removeprefix("urn:ballast:scorer:") for item in document["prov:wasGeneratedBy"]["prov:used"]}
    assert used == {scorer.scorer_id for scorer in pool.scorers}
    assert document["datePublished"] == "2026-01-02"
    assert document["distribution"][0]["sha256"] == read_data_file(folder / "mix.jsonl").sha256


def test_cyclonedx_accepts_the_bill_of_materials(mixed: tuple[Store, MixResult], folder: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (folder / BOM_FILE).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    component = document["metadata"]["component"]
    assert component["type"] == "data"
    assert component["hashes"] == [{"alg": "SHA-256", "content": mixed[1].manifest.rows_sha256}]
    assert [item["name"] for item in component["pedigree"]["ancestors"]] == ["data-set", "chats"]
    kinds = [item["type"] for item in document["components"]]
    assert kinds == ["data", "data", *["machine-learning-model"] * 3]


def test_the_card_says_sizes_limits_hashes_and_that_the_licence_is_unknown(
    mixed: tuple[Store, MixResult], folder: Path
) -> None:
    manifest = mixed[1].manifest
    text = (folder / CARD_FILE).read_text()
    assert text.startswith("---\nlicense: unknown\n")
    assert f"config_name: mix-{manifest.mix_id}" in text
    for part in (manifest.mix_id, manifest.rows_sha256, manifest.task.sha256, "| the data set | 40 |", "44 chat rows"):
        assert part in text
    limits = text.split("## What it does not protect against")[1]
    assert all(item.text in limits for item in manifest.protects.does_not)
    assert "| chats | unknown | 4 |" in text


def test_labels_of_the_corpus_say_the_licence_of_safe_rows(mixed: tuple[Store, MixResult], folder: Path) -> None:
    manifest, file = mixed[1].manifest, read_data_file(folder / "mix.jsonl")
    shares = ({"value": "cc-by-4.0", "n_rows": 3, "share": 0.75}, {"value": None, "n_rows": 1, "share": 0.25})
    pools = [pool.model_dump() | {"licences": shares} for pool in manifest.pools]
    labelled = type(manifest).model_validate({**manifest.model_dump(), "pools": pools})
    card = dataset_card(labelled, file)
    assert "| chats | cc-by-4.0 | 3 |" in card
    assert "| chats | unknown | 1 |" in card
    assert "license: unknown" in card  # the data set's own rows have none that is known
    assert croissant(labelled, file, DAY)["license"]["name"] == "unknown; safe rows: cc-by-4.0, unknown"
    (licence,) = bom(labelled, file)["components"][1]["licenses"]
    assert licence == {"license": {"name": "cc-by-4.0"}}


def test_the_same_mix_gives_the_same_cards(mixed: tuple[Store, MixResult], folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_cards(folder / "mix.jsonl", mixed[1].manifest, DAY)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"messages": [{"role": "user"}]}\n', "has 1 rows, mix"),
        ('{"messages"\n', "line 1 is not a row"),
        ("[1]\n", "line 1 is not"),
    ],
)
def test_a_file_that_is_not_the_mix_is_refused(
    mixed: tuple[Store, MixResult], lines: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "mix.jsonl").write_text(lines)
    with pytest.raises(IntegrityError, match=says):
        write_cards(tmp_path / "mix.jsonl", mixed[1].manifest, DAY)
    assert [path.name for path in tmp_path.iterdir()] == ["mix.jsonl"]
