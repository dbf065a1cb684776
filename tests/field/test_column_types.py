"""Columns of the type JSON and maps hold the value that they encode, as `datasets` reads it."""

import json
import uuid
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from curator.corpus.formats import Reject, Row, read_rows
from tests.field.fields import INPUTS, kept, refused

USER, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}
RIGHT: dict[str, list[dict[str, Any]]] = {
    "calls": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    "completion_text": [{"role": "user", "content": 'Spell "yes"'}, {"role": "assistant", "content": "y\ne\ns"}],
    "history": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "Go on"},
        {"role": "assistant", "content": "Fine"},
    ],
    "messages": [USER, HELLO],
    "role": [USER, HELLO],
    "system": [{"role": "system", "content": 'Be "brief"'}, USER, HELLO],
}


@pytest.fixture(params=RIGHT)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_json_columns_of_parquet(name: str) -> None:
    assert kept(f"h3_json_{name}.parquet") == [RIGHT[name]]


@pytest.mark.parametrize("container", ["file", "stream", "feather"])
def test_json_columns_of_arrow(name: str, container: str, tmp_path: Path) -> None:
    table = pq.read_table(INPUTS / f"h3_json_{name}.parquet")
    path = tmp_path / "data.arrow"
    if container == "feather":
        pyarrow.feather.write_feather(table, path, compression="uncompressed")
    else:
        make = pa.ipc.new_file if container == "file" else pa.ipc.new_stream
        with make(path, table.schema) as writer:
            writer.write_table(table)
    assert kept(path) == [RIGHT[name]]


@pytest.mark.parametrize(
    ("file", "expected"), [("content_parts_mixed", 2), ("tool_args_mixed_keys", 3), ("alpaca_mixed_output", 1)]
)
def test_saved_folders_read_as_datasets_reads_them(
    file: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    records = [json.loads(line) for line in (INPUTS / f"{file}.jsonl").read_text().splitlines()]
    saved = datasets.Dataset.from_list(records, on_mixed_types="use_json")
    saved.save_to_disk(str(tmp_path / "saved"))
    saved.to_parquet(tmp_path / "saved.parquet")
    as_read = tmp_path / "as_read.jsonl"
    as_read.write_text(
        "".join(json.dumps(record) + "\n" for record in datasets.load_from_disk(str(tmp_path / "saved")))
    )
    reference = [row.json for row in read_rows(as_read) if isinstance(row, Row)]
    assert len(reference) == expected
    for source in (tmp_path / "saved", tmp_path / "saved.parquet"):
        assert [row.json for row in read_rows(source) if isinstance(row, Row)] == reference


def test_json_of_duckdb_in_columns_lists_and_structs(tmp_path: Path) -> None:
    path = tmp_path / "duck.parquet"
    duckdb.sql(
        f"""copy (select 'Q' as prompt, '"a\\nb"'::json as completion, '"en"'::json as language,
        [{{'k': '1'::json}}] as other) to '{path}' (format parquet)"""
    )
    (row,) = read_rows(path)
    assert isinstance(row, Row)
    assert row.messages == [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a\nb"}]
    assert row.labels == {"language": "en"}


def test_nulls_inside_json_are_the_writers_and_those_of_columns_are_absent(tmp_path: Path) -> None:
    arguments = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": null, "b": [null, {"c": null}]}', None]))
    function = pa.StructArray.from_arrays(
        [pa.array(["f", None]), arguments], ["name", "arguments"], mask=pa.array([False, True])
    )
    calls = pa.ListArray.from_arrays([0, 0, 1], pa.StructArray.from_arrays([function.slice(0, 1)], ["function"]))
    turns = pa.StructArray.from_arrays(
        [pa.array(["user", "assistant"]), pa.array(["Q", None]), calls], ["role", "content", "tool_calls"]
    )
    path = tmp_path / "calls.parquet"
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 2], turns)}), path)
    ((_, answer),) = kept(path)
    expected = {"a": None, "b": [None, {"c": None}]}
    assert answer["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": expected}}]


@pytest.mark.parametrize("text", ['{"a": ', '{"a": 1, "a": 2}', "NaN"])
def test_json_that_is_none_spoils_its_row_alone(text: str, tmp_path: Path) -> None:
    completion = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"A"', text, '"C"']))
    path = tmp_path / "broken.parquet"
    pq.write_table(pa.table({"prompt": ["Q"] * 3, "completion": completion}), path)
    rows = list(read_rows(path))
    assert [isinstance(row, Row) for row in rows] == [True, False, True]
    ((code, message),) = refused(path)
    assert code in ("invalid_json", "duplicate_key")
    assert message.startswith("the column's type is JSON: ")


def test_bytes_that_are_no_text_in_a_json_column_spoil_their_row_alone(tmp_path: Path) -> None:
    storage = pa.array([b'"A"', b'"\xff"', b'"C"'], pa.binary()).view(pa.string())
    path = tmp_path / "bytes.arrow"
    table = pa.table({"prompt": ["Q"] * 3, "completion": pa.ExtensionArray.from_storage(pa.json_(), storage)})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    assert [isinstance(row, Row) for row in read_rows(path)] == [True, False, True]
    assert refused(path)[0][0] == "invalid_unicode"


def test_maps_are_objects() -> None:
    assert kept("duck_map.parquet") == [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]]
    assert [turns[1]["content"] for turns in kept("pa_mapmsg.parquet")] == ["A1", "A2"]


def test_a_key_twice_in_a_map_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    turns = [[("role", "user"), ("role", "user"), ("content", "Q")], [("role", "assistant"), ("content", "A")]]
    pq.write_table(pa.table({"messages": pa.array([turns], pa.list_(pa.map_(pa.string(), pa.string())))}), path)
    assert refused(path) == [("duplicate_key", "key 'role' stands twice in one map: keep one")]


def test_lists_of_messages_as_text_are_lists_of_messages(tmp_path: Path) -> None:
    """In `prompt` and `completion`, too, where both are; one alone is a text about messages."""
    prompt, completion = json.dumps([USER]), json.dumps([HELLO], indent=1)
    table = pa.table({"prompt": [prompt, prompt, "Q"], "completion": [completion, "A", completion]})
    pq.write_table(table, tmp_path / "text.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "text.csv")
    for name in ("text.parquet", "text.csv"):
        assert kept(tmp_path / name) == [
            [USER, HELLO],
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": "A"}],
            [{"role": "user", "content": "Q"}, {"role": "assistant", "content": completion}],
        ]


def test_a_uuid_is_its_text(tmp_path: Path) -> None:
    given = uuid.UUID("12345678-1234-5678-1234-567812345678")
    ids = pa.array([given.bytes], pa.uuid())
    pq.write_table(pa.table({"prompt": ["Q"], "completion": ["A"], "id": ids, "domain": ids}), tmp_path / "ids.parquet")
    (row,) = read_rows(tmp_path / "ids.parquet")
    assert isinstance(row, Row)
    assert (row.source_id, row.labels) == (str(given), {"domain": str(given)})


def test_variants_are_refused() -> None:
    assert refused("duck_variant.parquet")[0][0] == "missing_messages_list"


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_an_object_with_one_field_twice_is_refused_in_columns_too(suffix: str, tmp_path: Path) -> None:
    """pyarrow makes no dict of such a struct, and no reader could say which of the two values is meant."""
    columns = [pa.array(["assistant"]), pa.array(["yes"]), pa.array(["no"])]
    turn = pa.StructArray.from_arrays(columns, names=["role", "content", "content"])
    table = pa.table({"id": ["a"], "messages": pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), turn)})
    path = tmp_path / f"twice.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, path, compression="uncompressed")
    (found,) = read_rows(path)
    assert isinstance(found, Reject)
    assert (found.pointer, found.code) == ("/messages", "duplicate_key")
    assert "two fields 'content' in one object" in found.message


def test_a_time_that_no_calendar_of_python_has_spoils_its_row_alone(tmp_path: Path) -> None:
    table = pa.table({
        "prompt": ["a", "b", "c"],
        "completion": ["A", "B", "C"],
        "made_at": pa.array([0, 2**62, 5], pa.timestamp("s")),
    })  # fmt: skip
    pyarrow.feather.write_feather(table, path := tmp_path / "times.arrow", compression="uncompressed")
    first, second, third = read_rows(path)
    assert isinstance(first, Row)
    assert isinstance(third, Row)
    assert isinstance(second, Reject)
    assert (second.pointer, second.code) == ("/made_at", "data_type")
    assert "write it as text" in second.message
