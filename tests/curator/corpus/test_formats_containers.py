"""The same rows from every container, packed or not; damage, bombs and folders of `datasets`."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings

from curator.corpus.formats import (
    ReadLimits,
    Reject,
    Row,
    detect,
    locate,
    read_rows,
)
from curator.errors import BadInputError, MissingError, UnpackedTooLargeError

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def _read(data: bytes, name: str = "x", **options: Any) -> list[Row | Reject]:
    return list(read_rows(io.BytesIO(data), name=name, **options))


def _ids(rows: list[Row | Reject]) -> list[bytes]:
    return [row.json for row in rows if isinstance(row, Row)]


def _code(item: Row | Reject) -> str:
    assert isinstance(item, Reject), item
    return item.code


def _arrow(table: pa.Table, kind: str) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _csv(records: list[dict[str, str]], **options: Any) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(records[0]), **options)
    writer.writeheader()
    writer.writerows(records)
    return sink.getvalue().encode()


def _every_container(records: list[dict[str, str]]) -> dict[str, bytes]:
    table = pa.Table.from_pylist(records)
    return {
        "a.jsonl": b"".join(json.dumps(record).encode() + b"\n" for record in records),
        "a.json": json.dumps(records, indent=1, ensure_ascii=False).encode(),
        "a.parquet": _parquet(table),
        "a.arrow": _arrow(table, "file"),
        "stream.arrow": _arrow(table, "stream"),
        "a.csv": _csv(records),
        "a.tsv": _csv(records, delimiter="\t"),
    }


TEXTS = st.text(st.sampled_from('ab,;\t"\n\r\\é日 😀'), min_size=1, max_size=8).filter(lambda text: text.strip() != "")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.fixed_dictionaries({"instruction": TEXTS, "input": TEXTS, "output": TEXTS}), min_size=1, max_size=4))
def test_every_container_gives_the_same_rows(records: list[dict[str, str]]) -> None:
    files = _every_container(records)
    wanted = _ids(_read(files["a.jsonl"]))
    assert len(wanted) == len(records)
    for name, data in files.items():
        for suffix, pack in PACKERS.items():
            packed = pack(data)
            rows = _read(packed, name + suffix)
            assert _ids(rows) == wanted, name + suffix
            assert [row.record for row in rows] == list(range(1, len(records) + 1))


@pytest.mark.parametrize("suffix", PACKERS)
def test_containers_and_layouts_are_detected(suffix: str) -> None:
    record = {"prompt": "Hi", "completion": "Hello"}
    containers = {"jsonl": "jsonl", "json": "json", "parquet": "parquet", "arrow": "arrow", "csv": "csv", "tsv": "csv"}
    for name, data in _every_container([record] * 2).items():
        found = detect(io.BytesIO(PACKERS[suffix](data)), name=name + suffix)
        assert (found.container, found.layout) == (containers[name.rpartition(".")[2]], "prompt_completion")


def test_csv_rows_may_span_lines_and_hold_json() -> None:
    cells = [{"messages": json.dumps(CHAT["messages"], indent=1), "id": "1", "domain": ""}] * 2
    first, second = _read(_csv(cells), "a.csv")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.messages, first.source_id, first.labels) == (CHAT["messages"], "1", {})
    assert (first.line, second.line) == (2, 2 + len(cells[0]["messages"].splitlines()))


def test_blank_lines_before_a_csv_header_are_passed_over() -> None:
    first, second = _read(b"\xef\xbb\xbf\n\r\nprompt,completion\nq,a\n\nq2,a2\n", "a.csv")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.line, second.line) == (4, 6)


def test_csv_columns_without_a_name_are_empty_or_an_index() -> None:
    """A spreadsheet writes empty ones at the end; text there is an answer with a comma that was not quoted."""
    indexed, cut = _read(b",prompt,completion,,\n0,q,a,,\n1,q,Yes, of course,\n", "a.csv")
    assert isinstance(indexed, Row)
    assert isinstance(cut, Reject)
    assert (cut.code, "column without a name" in cut.message) == ("invalid_csv", True)


def test_a_bad_csv_row_does_not_stop_the_file() -> None:
    rows = _read(b'\xef\xbb\xbfprompt,completion\nq,a\nq\nq,"a"b\nq,\xff\n\nq,a\nq,\nq,"open\n', "a.csv")
    assert [row.line for row in rows] == [2, 3, 4, 5, 7, 8, 9]
    codes = [item.code if isinstance(item, Reject) else None for item in rows]
    assert codes == [None, "invalid_csv", "invalid_csv", "invalid_unicode", None, "missing_content", "invalid_csv"]


def test_a_column_that_stands_twice_is_refused() -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["prompt", "completion", "prompt"])
    for data, name in ((_arrow(table, "stream"), "a.arrow"), (b"prompt,completion,prompt\na,b,c\n", "a.csv")):
        assert [_code(row) for row in _read(data, name)] == ["duplicate_key"]


def test_long_csv_cells_are_read() -> None:
    (row,) = _read(_csv([{"prompt": "x" * 300_000, "completion": "y"}]), "a.csv")
    assert isinstance(row, Row)


def test_columns_say_preference_data_too() -> None:
    rows = _read(_parquet(pa.Table.from_pylist([{"chosen": "a", "rejected": "b"}] * 2)), "a.parquet")
    assert [_code(row) for row in rows] == ["preference_pairs"] * 2
    assert [_code(row) for row in _read(_csv([{"prompt": "q", "completion": "a", "label": "True"}]), "a.csv")] == [
        "preference_labels"
    ]


def test_nulls_in_columns_are_absent_at_every_depth() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"y": 2}}}
    turns = [[{"role": "assistant", "content": "", "tool_calls": [item]}] for item in (call, other)]
    data = _parquet(pa.Table.from_pylist([{"messages": item} for item in turns]))
    lines = b"".join(json.dumps({"messages": item}).encode() + b"\n" for item in turns)
    assert _ids(_read(data)) == _ids(_read(lines))
    assert len(_ids(_read(data))) == 2


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_packed_file_that_is_cut_off_is_never_read_as_whole(suffix: str, kept: float) -> None:
    texts = [f"answer {number * 7919 % 10007} of {number}" for number in range(20_000)]
    lines = b"".join(json.dumps({"prompt": text[::-1], "completion": text}).encode() + b"\n" for text in texts)
    data = PACKERS[suffix](lines)
    rows = _read(data[: int(len(data) * kept)], "a.jsonl" + suffix, format="jsonl")
    assert _code(rows[-1]) == "invalid_compression"
    assert all(isinstance(row, Row) for row in rows[:-1])
    assert len(rows) <= 20_000
    assert rows[-1].record == len(rows)


def test_damage_at_the_start_refuses_the_file() -> None:
    with pytest.raises(BadInputError, match="gzip data is damaged or ends early"):
        _read(gzip.compress(b"{}")[:8], "a.jsonl.gz")
    with pytest.raises(BadInputError, match="packed twice"):
        _read(gzip.compress(gzip.compress(b"{}")), "a.jsonl.gz.gz")


def test_several_packed_members_are_one_file() -> None:
    line = json.dumps(CHAT).encode() + b"\n"
    for pack in (gzip.compress, zstandard.compress):
        assert len(_ids(_read(pack(line) + pack(line), format="jsonl"))) == 2


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_bomb_is_stopped_at_the_bound(pack: Any, name: str) -> None:
    record = {"prompt": "x" * 1_000_000, "completion": "y"}
    data = _every_container([record] * 5)[name]
    packed = pack(data if name != "a.parquet" else data + b"\0" * 5_000_000)
    assert len(packed) < 100_000
    with pytest.raises(UnpackedTooLargeError, match="unpacks to more than 2,000,000 bytes"):
        _read(packed, name, limits=ReadLimits(max_unpacked_bytes=2_000_000))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_what_unpacks_to_hundreds_of_times_its_size_is_a_bomb(pack: Any) -> None:
    """Thousands of equal rows are a small file: their reader would be at work for minutes."""
    line = json.dumps(CHAT).encode() + b"\n"
    packed = pack(line * (40_000_000 // len(line)))
    with pytest.raises(UnpackedTooLargeError, match="unpacks to more than 250 times its size: send it unpacked"):
        _read(packed, "a.jsonl", limits=ReadLimits(max_unpacked_bytes=2**33))
    few = line * (4_000_000 // len(line))
    assert len(_read(pack(few), "a.jsonl", limits=ReadLimits(max_unpacked_bytes=2**33))) == 4_000_000 // len(line)


def test_columns_that_repeat_a_text_without_end_are_a_bomb() -> None:
    indices = pa.array([0] * 400, pa.int32())
    text = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 1_000_000]))
    table = pa.table({"prompt": text, "completion": ["fine"] * 400})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    for data in (_parquet(table), sink.getvalue()):
        with pytest.raises(
            UnpackedTooLargeError, match=r"more than (8,388,608|4\d,[0-9,]+) bytes and 1,000 times its size: send it as"
        ):
            _read(data, limits=ReadLimits(max_unpacked_bytes=2**33))


def test_columns_that_unpack_to_too_much_are_stopped() -> None:
    table = pa.Table.from_pylist([{"prompt": "x" * 1_000_000, "completion": "y"}] * 20)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=1)
    for data in (_parquet(table), sink.getvalue()):
        assert len(data) < 2_000_000
        with pytest.raises(UnpackedTooLargeError, match="columns unpack to more than 2,000,000 bytes"):
            _read(data, limits=ReadLimits(max_unpacked_bytes=2_000_000))
        assert len(_ids(_read(data))) == 20


def test_an_arrow_stream_that_is_cut_off_is_told() -> None:
    data = _arrow(pa.Table.from_pylist([CHAT] * 50), "stream")
    assert _code(_read(data[:-20])[-1]) == "invalid_arrow"
    with pytest.raises(BadInputError, match="not a whole Arrow file"):
        _read(_arrow(pa.Table.from_pylist([CHAT]), "file")[:-20])
    assert _code(_read(b"nothing", format="arrow")[0]) == "invalid_arrow"


def test_saved_folders_are_read_without_datasets(tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    for shard in range(2):
        (folder / f"data-{shard}.arrow").write_bytes(_arrow(pa.Table.from_pylist([CHAT] * 3), "stream"))
    state = {"_data_files": [{"filename": f"data-{shard}.arrow"} for shard in (1, 0)]}
    (folder / "state.json").write_text(json.dumps(state))
    rows = list(read_rows(str(folder)))
    assert [row.record for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(row, Row) for row in rows)
    assert [path.name for path in locate(folder).files] == ["data-1.arrow", "data-0.arrow"]
    (folder / "data-0.arrow").unlink()
    with pytest.raises(MissingError, match=r"lacks data-0\.arrow"):
        locate(folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(BadInputError, match="no data files of its own folder"):
        locate(folder)


def test_a_dataset_dict_asks_for_a_split(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(BadInputError, match=rf"has the splits train, test: name one, as {tmp_path.name}/train"):
        locate(tmp_path)


@pytest.mark.parametrize("name", ["data/x.jsonl", "none.json", "a/b/c", "org/name.csv.gz"])
def test_a_mistyped_file_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="there is no file"):
        locate(name)
    with pytest.raises(MissingError, match="there is no file"):
        locate(Path("org/name"))
