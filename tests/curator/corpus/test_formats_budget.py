import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpus.formats import ReadLimits, Reject, Row, read_rows, read_values
from curator.corpus.formats.arrow_sizes import row_sizes
from curator.corpus.formats.budget import MAX_DEPTH, MAX_TURNS, MAX_VALUES, text_problem, value_problem
from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.errors import BadInputError
from tests.bombs import parquet, stream

ANSWER = {"role": "assistant", "content": "fine"}


def codes(data: bytes, container: Any, **options: Any) -> list[str]:
    rows = read_rows(io.BytesIO(data), format=container, **options)
    return [row.code if isinstance(row, Reject) else "row" for row in rows]


@pytest.mark.parametrize(
    ("text", "n_values"),
    [
        (b"1", 1),
        (b'["a,b,c", 2]', 3),
        (b'{"a": [1, {"b": "[[[,,,\\""}]}', 5),
        (b"[" + b",".join([b"[]"] * 300) + b"]", 301),
        (b"[" * 90 + b"]" * 90, 91),
    ],
)
def test_values_are_counted_without_decoding(text: bytes, n_values: int) -> None:
    """The count is that of the values, or one more for each list or object that is empty."""
    assert text_problem(text, 2 * n_values) is None
    if n_values > 1:
        problem = text_problem(text, n_values - 1)
        assert problem is not None
        assert problem.code == "record_too_large"


def test_the_texts_of_ordinary_rows_count_for_nothing() -> None:
    table = ",".join("[{0}]" for _ in range(600_000))
    row = json.dumps({"messages": [{"role": "user", "content": table}, ANSWER]}).encode()
    assert codes(row + b"\n", "jsonl") == ["row"]


def test_a_row_may_have_as_many_turns_as_are_taken() -> None:
    turns = [{"role": "user", "content": "a"}, ANSWER] * (MAX_TURNS // 2)
    assert codes(json.dumps({"messages": turns}).encode(), "jsonl") == ["row"]
    assert codes(json.dumps({"messages": [*turns, ANSWER]}).encode() + b"\n", "jsonl") == ["record_too_large"]
    assert codes(parquet(pa.table({"messages": [turns]})), "parquet") == ["row"]
    assert codes(parquet(pa.table({"messages": [[*turns, ANSWER]]})), "parquet") == ["record_too_large"]


def test_a_whole_number_over_the_decoders_bound_says_what_to_do() -> None:
    record = '{"id": ' + "9" * 5_000 + ', "messages": []}'
    with pytest.raises(UndecodableError, match="more than 4,300 digits: write it as text"):
        decode(record.encode(), 0)
    with pytest.raises(UndecodableError, match="NaN is not JSON: use null"):
        decode(b'{"id": NaN}', 0)


def test_a_file_of_very_many_pages_is_refused_before_they_are_all_looked_at() -> None:
    table = pa.table({"prompt": ["a"] * 60_000, "completion": ["b"] * 60_000})
    data = parquet(table, data_page_size=1, write_batch_size=1, use_dictionary=False)
    with pytest.raises(BadInputError, match="more than 100,000 pages: write larger ones"):
        codes(data, "parquet")


def test_too_many_levels_are_refused_before_decoding() -> None:
    with pytest.raises(UndecodableError, match="nested too deeply"):
        decode(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), 0)
    deep: Any = 0
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    problem = value_problem({"messages": deep}, 1000)
    assert problem is not None
    assert "nested" in problem.message
    aside = json.dumps({"messages": [{"role": "user", "content": "a"}, ANSWER], "x": deep}).encode() + b"\n"
    assert codes(aside, "jsonl") == ["invalid_json"]


def test_rows_in_memory_have_the_same_budget() -> None:
    long = {"messages": [{"role": "user", "content": "x" * 2000}, ANSWER]}
    many = {"messages": [0] * (MAX_VALUES + 1)}
    found = list(read_values([long, many, {"messages": [ANSWER]}], limits=ReadLimits(max_row_bytes=1000)))
    assert [row.code if isinstance(row, Reject) else "row" for row in found] == [
        "record_too_large", "record_too_large", "row"
    ]  # fmt: skip


@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_row_over_the_bound_is_named_with_the_option_that_raises_it(container: Any) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "x" * 3000, "completion": "b"}] * 2
    data = {
        "jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in rows),
        "json": json.dumps(rows).encode(),
        "csv": b"prompt,completion\n" + b"".join(f"{r['prompt']},{r['completion']}\n".encode() for r in rows),
        "parquet": parquet(pa.Table.from_pylist(rows)),
        "arrow": stream(pa.RecordBatch.from_pylist(rows)),
    }[container]
    found = list(read_rows(io.BytesIO(data), format=container, limits=ReadLimits(max_row_bytes=2048)))
    assert [isinstance(row, Row) for row in found] == [True, False, True, False]
    second = found[1]
    assert isinstance(second, Reject)
    assert (second.record, second.code) == (2, "record_too_large")
    assert "2,048" in second.message
    assert "--max-row-bytes" in second.message
    assert codes(data, container) == ["row"] * 4


def test_a_record_lists_no_more_than_twenty_problems() -> None:
    (row,) = read_rows(io.BytesIO(json.dumps({"messages": [{}] * 9000}).encode() + b"\n"), format="jsonl")
    assert isinstance(row, Reject)
    assert len(row.problems) == 20


def test_keys_of_strangers_stand_in_messages_only_in_part() -> None:
    data = json.dumps({"messages": [{"role": "assistant", "content": "a", "k" * 100_000: 1}]}).encode() + b"\n"
    (row,) = read_rows(io.BytesIO(data), format="jsonl")
    assert isinstance(row, Reject)
    assert len(row.pointer) <= 200
    assert len(row.message) <= 500


LONG, SHORT = "x" * 100, "y"
ARRAYS = {
    "string": pa.array([LONG, None, SHORT]),
    "large_string": pa.array([LONG, None, SHORT], pa.large_string()),
    "string_view": pa.array([LONG, None, SHORT], pa.string_view()),
    "dictionary": pa.array([LONG, None, SHORT]).dictionary_encode(),
    "list": pa.array([[LONG], None, [SHORT]]),
    "list_view": pa.array([[LONG], None, [SHORT]], pa.list_view(pa.string())),
    "fixed_size_list": pa.array([[LONG], None, [SHORT]], pa.list_(pa.string(), 1)),
    "struct": pa.array([{"a": LONG}, None, {"a": SHORT}]),
    "map": pa.array([[("a", LONG)], None, [("a", SHORT)]], pa.map_(pa.string(), pa.string())),
    "list of dictionary": pa.ListArray.from_arrays(
        pa.array([0, 1, 1, 2], pa.int32()), pa.array([LONG, SHORT]).dictionary_encode()
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("start", [0, 1])
def test_sizes_of_columns_are_those_of_their_values(name: str, start: int) -> None:
    batch = pa.record_batch({"a": ARRAYS[name]}).slice(start)
    n_bytes, n_values = row_sizes(batch, {})
    texts = [len(LONG), 0, len(SHORT)][start:]
    assert all(text <= size <= text + 60 for text, size in zip(texts, n_bytes.tolist(), strict=True))
    assert all(2 <= n <= 6 for n in n_values.tolist())


def test_runs_are_counted_as_their_values() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 4], pa.int32()), pa.array([LONG, SHORT]))
    n_bytes, _ = row_sizes(pa.record_batch({"a": runs}).slice(1), {})
    assert [size > 100 for size in n_bytes.tolist()] == [True, False, False]


def test_a_column_that_is_not_read_is_named() -> None:
    union = pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array(["a", "b"])])
    with pytest.raises(BadInputError, match="'odd' has the type sparse_union"):
        list(read_rows(io.BytesIO(stream(pa.record_batch({"odd": union, "prompt": ["a", "b"]}))), format="arrow"))


@pytest.mark.parametrize("row_group_size", [300, 4000])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_shared_texts_of_parquet_are_the_texts(tmp_path: Path, row_group_size: int, use_dictionary: bool) -> None:
    """Texts so long that the file is read as dictionaries give the rows that plain reading gives."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n % 7} " * 40_000}, {"role": "assistant", "content": f"{n}"}]}
        for n in range(1000)
    ]
    pq.write_table(
        pa.Table.from_pylist(rows),
        tmp_path / "a.parquet",
        row_group_size=row_group_size,
        use_dictionary=use_dictionary,
        dictionary_pagesize_limit=8 * 2**20,
    )
    found = list(read_rows(tmp_path / "a.parquet"))
    assert [row.messages for row in found if isinstance(row, Row)] == [row["messages"] for row in rows]


def test_a_text_that_is_not_utf8_spoils_its_row_alone_among_shared_ones() -> None:
    texts = pa.array([b"\xff" * 2_000_000, b"good"], pa.binary()).cast(pa.string(), safe=False)
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 100, pa.int32()), texts)
    data = parquet(pa.table({"prompt": column, "completion": ["a"] * 200}), dictionary_pagesize_limit=8 * 2**20)
    assert codes(data, "parquet") == ["invalid_unicode", "row"] * 100
