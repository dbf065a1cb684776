import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.errors import BadInputError, IntegrityError, MissingError
from curator.mix import row_check
from curator.mix.build import build_mix
from curator.mix.files import mix_batches, mix_path, row_lines, rows_sha256
from curator.mix.identity import (
    Manifest,
    mix_id,
    pool_names,
    read_manifest,
)
from curator.mix.verify import verify
from curator.recipe import OrderName, Recipe
from curator.store.store import Store
from tests.mix_stores import recipe, scored_store, task_set

ORDERS: tuple[OrderName, ...] = ("even", "every_k", "shuffle")
EXACT = recipe(revision="r1", aligned="a1", misaligned=["m1"], filters=["refusal"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("made")
    store = scored_store(root / "store")
    return root / "store", build_mix(store, task_set(root), recipe(interleave_ratio=0.1)).manifest


def folder_of(store: Store, manifest: Manifest) -> Path:
    folder = store.local_path(mix_path("local", manifest.mix_id))
    assert folder is not None
    return folder


@pytest.fixture
def copied(made: tuple[Path, Manifest], tmp_path: Path) -> tuple[Store, Manifest]:
    """A store of its own with the same mix, to be damaged."""
    store = Store(tmp_path / "store").open()
    target = folder_of(store, made[1])
    target.mkdir(parents=True)
    for path in folder_of(Store(made[0]), made[1]).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return store, made[1]


def test_the_id_is_pinned_and_moves_with_every_part() -> None:
    # Pinned: a changed id formula needs another MIX_FORMAT_VERSION.
    assert mix_id(EXACT, "t", ["c"]) == PINNED
    others = [
        mix_id(EXACT, "t2", ["c"]),
        mix_id(EXACT, "t", ["c2"]),
        mix_id(EXACT, "t", ["c"], format_version=2),
        mix_id(recipe(revision="r2", aligned="a1", misaligned=["m1"], filters=["refusal"]), "t", ["c"]),
        mix_id(recipe(revision="r1", aligned="a1", misaligned=["m2"], filters=["refusal"]), "t", ["c"]),
        mix_id(recipe(revision="r1", aligned="a1", misaligned=["m1"]), "t", ["c"]),
        mix_id(EXACT.model_copy(update={"seed": 1}), "t", ["c"]),
        mix_id(EXACT.model_copy(update={"order": "shuffle"}), "t", ["c"]),
    ]
    assert len({PINNED, *others}) == len(others) + 1


PINNED = "c820af7a35dcd80caebb6de73e1619e4"


def test_equal_recipes_written_differently_have_one_id() -> None:
    flat = recipe(revision="r1", aligned="a1", misaligned=["m1"], score="gap_rel", interleave_ratio=0.05)
    nested = recipe(pools=[{"misaligned": ["m1"], "aligned": "a1", "revision": "r1", "corpus": "chats"}], seed=0)
    assert mix_id(flat, "t") == mix_id(nested, "t") != mix_id(EXACT, "t")


def test_pools_of_one_corpus_are_numbered() -> None:
    pools = recipe(pools=[{"corpus": "a"}, {"corpus": "b"}, {"corpus": "a"}])
    assert pool_names(pools) == ["a", "b", "a#2"]


def test_rows_sha256_is_the_hash_of_the_rows_as_json_lines(made: tuple[Path, Manifest]) -> None:
    root, manifest = made
    lines = [line for batch in mix_batches(Store(root), "local", manifest.mix_id, 7) for line in row_lines(batch)]
    assert hashlib.sha256(b"".join(lines)).hexdigest() == rows_sha256(lines) == manifest.rows_sha256
    for line in lines:
        row = json.loads(line)
        assert None not in row.values()
        assert isinstance(row["messages"], list)
        # A client that read a line can write the very bytes again.
        assert orjson.dumps(row) + b"\n" == line


def test_the_manifest_survives_a_round_trip(made: tuple[Path, Manifest]) -> None:
    assert read_manifest(Store(made[0]), "local", made[1].mix_id) == made[1]
    assert isinstance(made[1].recipe, Recipe)


@pytest.mark.parametrize("order", ORDERS)
def test_a_whole_mix_verifies(tmp_path: Path, order: OrderName, monkeypatch: pytest.MonkeyPatch) -> None:
    store = scored_store(tmp_path / "store")
    manifest = build_mix(store, task_set(tmp_path), recipe(order=order, interleave_ratio=0.2)).manifest
    monkeypatch.setattr(row_check, "ORDINAL_WINDOW", 30)  # a shuffled mix then takes four passes
    report = verify(store, "local", manifest.mix_id)
    assert (report.n_rows, report.n_safe, report.rows_sha256) == (120, 20, manifest.rows_sha256)


def rewrite(store: Store, manifest: Manifest, change: Callable[[pa.Table], pa.Table]) -> None:
    path = folder_of(store, manifest) / "mix.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(change(table), path)


def set_value(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def take(*rows: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.take(pa.array([*rows, *range(max(rows) + 1, len(table))]))


# With 0.1 safe rows per task row, rows 5 and 16 are the first two safe ones.
DAMAGE = [
    pytest.param(take(1, 0, 2), r"rows_sha256.*another ordinal", id="two rows swapped"),
    pytest.param(take(0, 2), r"rows in the file: 109.*another position", id="a row left out"),
    pytest.param(take(*range(16), 5), r"a safe row that came before in 1 rows, first at 16", id="a safe row twice"),
    pytest.param(set_value("messages", 3, "[]"), r"example_id that does not follow.*first at 3", id="other text"),
    pytest.param(set_value("origin", 5, "task"), r"another origin.*first at 5", id="a safe row called task"),
    pytest.param(set_value("pool", 5, "other"), r"another pool.*first at 5", id="another pool"),
    pytest.param(set_value("gap_abs", 5, 9.0), r"rows_sha256", id="another gap"),
    pytest.param(set_value("source", 5, "x.jsonl"), r"rows_sha256", id="another source"),
]


@pytest.mark.parametrize(("change", "expected"), DAMAGE)
def test_changed_rows_are_found(
    copied: tuple[Store, Manifest], change: Callable[[pa.Table], pa.Table], expected: str
) -> None:
    store, manifest = copied
    rewrite(store, manifest, change)
    with pytest.raises(IntegrityError, match="not what its manifest says") as caught:
        verify(store, "local", manifest.mix_id)
    details = "; ".join(map(str, caught.value.details))
    assert "mix.parquet has SHA-256" in details
    assert re.search(expected, details), details


MANIFEST_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"n_safe": 11}, "n_safe: 11 in the manifest, 10 by the recipe"),
    ({"rows_sha256": "0" * 64}, "rows_sha256"),
    ({"mix_id": "0" * 32}, "mix_id"),
    ({"ratio": {"asked": 0.1, "reached_rows": 0.2, "reached_response_tokens": None, "mix_share": 0.1,
                "largest_prefix_deviation": 0.5}}, "ratio"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), MANIFEST_CHANGES)
def test_a_changed_manifest_is_found(copied: tuple[Store, Manifest], change: dict[str, Any], expected: str) -> None:
    store, manifest = copied
    path = f"{mix_path('local', manifest.mix_id)}/manifest.json"
    store.write_json(path, {**store.read_json(path), **change})
    with pytest.raises(IntegrityError, match=expected):
        verify(store, "local", manifest.mix_id)


def test_another_recipe_is_found(copied: tuple[Store, Manifest]) -> None:
    store, manifest = copied
    path = f"{mix_path('local', manifest.mix_id)}/manifest.json"
    document = store.read_json(path)
    document["recipe"]["seed"] = 1
    store.write_json(path, document)
    with pytest.raises(IntegrityError, match="follows as"):
        verify(store, "local", manifest.mix_id)


def test_a_cut_or_missing_file_is_found(copied: tuple[Store, Manifest]) -> None:
    store, manifest = copied
    path = folder_of(store, manifest) / "mix.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="not whole Parquet"):
        verify(store, "local", manifest.mix_id)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"mix\.parquet is missing"):
        verify(store, "local", manifest.mix_id)


def test_a_manifest_of_another_shape_is_refused(copied: tuple[Store, Manifest]) -> None:
    store, manifest = copied
    path = f"{mix_path('local', manifest.mix_id)}/manifest.json"
    store.write_json(path, {**store.read_json(path), "surprise": 1})
    with pytest.raises(IntegrityError, match="/surprise"):
        read_manifest(store, "local", manifest.mix_id)


@pytest.mark.parametrize("bad", ["", "..", "0" * 31, "0" * 33, "Z" * 32, "../../corpora/chats/xxxxxxxxxxxx"])
def test_what_is_no_id_finds_no_mix(made: tuple[Path, Manifest], bad: str) -> None:
    with pytest.raises(MissingError, match="invalid mix id"):
        verify(Store(made[0]), "local", bad)


def test_an_unknown_mix_and_a_bad_tenant(made: tuple[Path, Manifest]) -> None:
    with pytest.raises(MissingError, match="no mix 0000"):
        read_manifest(Store(made[0]), "local", "0" * 32)
    with pytest.raises(MissingError, match="of tenant other"):
        read_manifest(Store(made[0]), "other", made[1].mix_id)
    with pytest.raises(BadInputError, match="tenant name"):
        read_manifest(Store(made[0]), "../local", made[1].mix_id)
