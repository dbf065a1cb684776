import hashlib
import io
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from curator.corpus import task_set as tasks
from curator.corpus.formats import ReadLimits
from curator.corpus.task_set import read_task_set, task_set_from_rows
from curator.errors import BadInputError, BadRowsError
from curator.messages import example_id
from curator.store.schema import TASK_ROWS
from curator.store.store import arrow_schema


def _chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]}


def _canonical(text: str) -> str:
    return json.dumps(_chat(text)["messages"], separators=(",", ":"), ensure_ascii=False)


def _jsonl(records: list[Any]) -> io.BytesIO:
    return io.BytesIO("".join(json.dumps(record) + "\n" for record in records).encode())


def test_rows_keep_order_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "GROUP_ROWS", 2)
    texts = ["b", "a", "b", "c", "a"]
    task_set = read_task_set(_jsonl([_chat(text) for text in texts]), tmp_path, name="t.jsonl")
    table = task_set.table()
    assert table.schema == arrow_schema(TASK_ROWS)
    assert table["ordinal"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["messages"].to_pylist() == [_canonical(text) for text in texts]
    assert table["example_id"].to_pylist() == [example_id(_canonical(text)) for text in texts]
    assert (task_set.n_rows, task_set.n_rejected, task_set.rejects) == (5, 0, ())
    assert [batch.num_rows for batch in task_set.batches(3)] == [2, 2, 1]
    task_set.require_usable()


def test_long_rows_make_small_groups_which_batches_do_not_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set of long rows a few are in memory at once, and not five thousand."""
    monkeypatch.setattr(tasks, "GROUP_BYTES", 2_000)
    texts = ["x" * 1_500, "a", "y" * 900, "b", "c", "d"]
    task_set = read_task_set(_jsonl([_chat(text) for text in texts]), tmp_path, name="t.jsonl")
    assert pq.ParquetFile(task_set.path).num_row_groups == 2
    assert [batch.num_rows for batch in task_set.batches()] == [3, 3]
    assert task_set.table()["messages"].to_pylist() == [_canonical(text) for text in texts]
    assert 800 < task_set.widest_bytes < 1_500


@pytest.mark.parametrize(
    ("n_good", "n_bad", "stopped"), [(0, 30, True), (12, 30, True), (30, 30, False), (5, 10, False)]
)
def test_reading_stops_where_most_rows_are_bad(n_good: int, n_bad: int, stopped: bool, tmp_path: Path) -> None:
    limits = ReadLimits(max_records=100, max_mostly_bad=10)
    rows = [_chat("a")] * n_good + [{}] * n_bad
    if not stopped:
        assert task_set_from_rows(rows, tmp_path, limits=limits).n_rejected == n_bad
        return
    with pytest.raises(BadRowsError, match="and the rest was not read") as caught:
        task_set_from_rows(rows, tmp_path, limits=limits)
    assert len(caught.value.details) == max(10, n_good) + 1
    assert not list(tmp_path.iterdir())
    assert task_set_from_rows(rows, tmp_path).n_rejected == n_bad  # a caller without bounds counts them all


def test_the_hash_is_over_canonical_lines_in_order(tmp_path: Path) -> None:
    rows = [_chat("a"), _chat("é")]
    lines = "".join(_canonical(text) + "\n" for text in ("a", "é"))
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert task_set_from_rows(rows, tmp_path).sha256 == expected
    assert read_task_set(_jsonl(rows), tmp_path, name="t.jsonl").sha256 == expected
    assert read_task_set(io.BytesIO(json.dumps(rows).encode()), tmp_path, name="t").sha256 == expected
    assert task_set_from_rows(rows[::-1], tmp_path).sha256 != expected
    assert task_set_from_rows(rows + rows[:1], tmp_path).sha256 != expected


def test_bad_rows_are_returned_for_the_caller_to_judge(tmp_path: Path) -> None:
    rows = [_chat("a"), {}, _chat("b"), {"messages": [{"role": "x", "content": None}]}]
    task_set = read_task_set(_jsonl(rows), tmp_path, name="t.jsonl")
    assert (task_set.n_rows, task_set.n_rejected, task_set.n_parsed) == (2, 2, 4)
    assert task_set.table()["ordinal"].to_pylist() == [0, 1]
    assert task_set.reject_codes == {"missing_messages_list": 1, "unrecognized_role": 1}
    assert [(item["line"], item["pointer"]) for item in task_set.reject_dicts()] == [
        (2, "/messages"),
        (4, "/messages/0/role"),
        (4, "/messages/0/content"),
    ]
    with pytest.raises(BadRowsError, match="2 of 4 task rows are bad; the first is line 2: missing_messages_list") as e:
        task_set.require_usable()
    assert e.value.details == task_set.reject_dicts()


def test_listed_bad_rows_are_capped_and_all_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MAX_LISTED_REJECTS", 3)
    task_set = task_set_from_rows([{}] * 9, tmp_path)
    assert (len(task_set.rejects), task_set.n_rejected, task_set.n_rows) == (3, 9, 0)
    assert task_set.table().num_rows == 0


def test_no_file_is_left_when_reading_fails(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is zip"):
        read_task_set(io.BytesIO(b"PK\x03\x04..."), tmp_path / "work", name="t.zip")
    assert list((tmp_path / "work").iterdir()) == []


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).filter(str.strip), max_size=6))
def test_memory_and_file_give_the_same_set(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [_chat(text) for text in texts]
    one = task_set_from_rows(rows, folder)
    two = read_task_set(_jsonl(rows), folder, format="jsonl")
    assert (one.n_rows, one.sha256) == (two.n_rows, two.sha256)
    assert one.table().equals(two.table())
