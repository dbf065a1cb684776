"""The record splitter against the standard library, at every way of cutting the input."""

import io
import json
import tracemalloc
from typing import Any, BinaryIO

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from curator.corpus.formats import ReadLimits, Reject, Row, read_rows
from curator.corpus.formats import json_records as json_stream
from curator.corpus.formats.json_records import split_records

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('"\\[]{},é😀 a\n'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


class Dribble(io.BytesIO):
    """A file that gives few bytes at a time, so that every token is cut somewhere."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.step if size is None or size < 0 else min(size, self.step))


def _values(file: BinaryIO) -> list[Any]:
    pieces = list(split_records(file))
    assert {piece.end for piece in pieces} <= {"whole"}
    return [json.loads(piece.data) for piece in pieces]


@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 2]), st.booleans(), st.integers(1, 7))
def test_records_are_those_of_the_standard_library(
    values: list[Any], indent: int | None, ascii_only: bool, step: int
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    assert _values(Dribble(data, step)) == values
    whole = list(split_records(io.BytesIO(data)))
    assert all(data[piece.offset :].startswith(piece.data) for piece in whole)


@given(st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=4), st.integers(1, 7))
def test_objects_may_follow_each_other(values: list[Any], step: int) -> None:
    data = "\n".join(json.dumps(value, indent=1) for value in values).encode()
    assert _values(Dribble(data, step)) == values


CHATS = [
    {"messages": [{"role": "user", "content": f'é \\ "{n}" 😀'}, {"role": "assistant", "content": "ok\n"}]}
    for n in range(3)
]


@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_cut_anywhere_gives_its_whole_records_and_one_bad_one(ascii_only: bool) -> None:
    data = json.dumps(CHATS, ensure_ascii=ascii_only).encode()
    one = json.dumps(CHATS[0], ensure_ascii=ascii_only).encode()
    ends = [1 + (len(one) + 2) * n + len(one) for n in range(len(CHATS))]  # after each record's brace
    for cut in range(2, len(data)):
        rows = list(read_rows(io.BytesIO(data[:cut]), format="json"))
        assert sum(isinstance(row, Row) for row in rows) == sum(end <= cut for end in ends), cut
        (bad,) = [row for row in rows if isinstance(row, Reject)]
        assert rows[-1] is bad
        assert (bad.code, bad.record) == ("truncated_json", len(rows)), cut
        assert bad.byte_offset is not None
        assert bad.byte_offset <= cut


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.text(st.sampled_from('[]{}",:\\a1 \n'), max_size=40).map(str.encode))
def test_no_bytes_at_all_raise(data: bytes) -> None:
    for container in ("json", "jsonl"):
        for number, row in enumerate(read_rows(io.BytesIO(data), format=container), start=1):
            assert row.record == number


@pytest.mark.parametrize("text", ["[1,]", "[,1]", "[1,,2]"])
def test_missing_records_are_bad_records(text: str) -> None:
    rows = list(read_rows(io.BytesIO(text.encode()), format="json"))
    assert [row.code for row in rows if isinstance(row, Reject)].count("invalid_json") == 1


def test_memory_is_one_record_and_not_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 2**16)
    record = json.dumps({"messages": [{"role": "assistant", "content": "x" * 2_000}]}).encode()
    file = io.BytesIO(b"[" + b",".join([record] * 1_000) + b"]")  # 2 MB
    tracemalloc.start()
    n_rows = sum(isinstance(row, Row) for row in read_rows(file, format="json"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_rows == 1_000
    assert peak < 8 * 2**16


@pytest.mark.parametrize("container", ["json", "jsonl"])
@pytest.mark.parametrize("text", [b"y", b"\\\\", b'\\"', b'","z":"', b'"],"b":["'])
def test_a_huge_record_is_refused_and_reading_goes_on_after_it(container: Any, text: bytes) -> None:
    limit = 2**20
    good = json.dumps(CHATS[0]).encode()
    huge = b'{"a": ["' + text * (3 * limit // len(text)) + b'"]}'
    records = [good, huge, good, huge, huge, good]
    data = b"\n".join(records) + b"\n" if container == "jsonl" else b"[" + b",".join(records) + b"]"
    rows = list(read_rows(io.BytesIO(data), format=container, limits=ReadLimits(max_row_bytes=limit)))
    assert [row.code if isinstance(row, Reject) else "row" for row in rows] == [
        "row", "record_too_large", "row", "record_too_large", "record_too_large", "row"
    ]  # fmt: skip
    assert isinstance(rows[1], Reject)
    assert rows[1].byte_offset == data.index(huge)
    assert "--max-row-bytes" in rows[1].message


def test_an_array_of_bare_digits_is_refused_in_bounded_memory() -> None:
    rows = list(
        read_rows(io.BytesIO(b"[" + b"1" * 5_000_000 + b",2]"), format="json", limits=ReadLimits(max_row_bytes=2**20))
    )
    assert [row.code for row in rows if isinstance(row, Reject)] == ["record_too_large", "data_type"]


def test_a_long_blank_line_does_not_hide_what_follows() -> None:
    data = b" " * 2_000_000 + json.dumps(CHATS[0]).encode() + b"\n"
    (row,) = read_rows(io.BytesIO(data), format="jsonl", limits=ReadLimits(max_row_bytes=2**20))
    assert isinstance(row, Reject)
    assert row.code == "record_too_large"


def test_a_huge_csv_record_is_refused_and_lines_are_counted_on() -> None:
    huge = b'"' + b'a ""quoted""\n' * 200_000 + b'",b\n'
    data = b"prompt,completion\na,b\n" + huge + b"c,d\n" + b"x" * 2_000_000 + b"\ne,f\n"
    rows = list(read_rows(io.BytesIO(data), format="csv", limits=ReadLimits(max_row_bytes=2**20)))
    assert [row.code if isinstance(row, Reject) else "row" for row in rows] == [
        "row", "record_too_large", "row", "record_too_large", "row"
    ]  # fmt: skip
    assert [row.line for row in rows] == [2, 3, 200_004, 200_005, 200_006]
