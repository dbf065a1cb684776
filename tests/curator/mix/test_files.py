"""Lines made by columns are the bytes of those made row by row, whatever the rows hold."""

from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.messages import canonical_messages, dump_messages
from curator.mix.files import (
    json_lines,
    message_lines,
    row_line,
    row_lines,
)
from curator.store.schema import MIX_ROWS
from curator.store.store import arrow_schema

SCHEMA = arrow_schema(MIX_ROWS)
TEXT = st.text(max_size=8)
HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
MESSAGES = st.builds(
    lambda text: dump_messages(canonical_messages([{"role": "user", "content": text}])), st.text(max_size=20)
)
LOSS = st.fixed_dictionaries(
    {
        field.name: st.floats(allow_nan=False, allow_infinity=False, width=32)
        if pa.types.is_floating(field.type)
        else st.integers(0, 9)
        if pa.types.is_integer(field.type)
        else TEXT
        for field in SCHEMA.field("losses").type.value_type
    }
)


def _values(name: str, kind: pa.DataType, nullable: bool) -> st.SearchStrategy[Any]:
    if name == "messages":
        found: st.SearchStrategy[Any] = MESSAGES
    elif name in ("example_id", "original_id"):
        found = HEX
    elif name == "origin":
        found = st.sampled_from(["task", "safe"])
    elif pa.types.is_integer(kind):
        found = st.integers(0, 2**31 - 1)
    elif pa.types.is_floating(kind):
        found = st.floats(allow_nan=False, allow_infinity=False)
    elif pa.types.is_list(kind):
        found = st.lists(LOSS if name == "losses" else TEXT, max_size=2)
    else:
        found = TEXT
    return st.none() | found if nullable else found


ROWS = st.lists(
    st.fixed_dictionaries({field.name: _values(field.name, field.type, field.nullable) for field in SCHEMA}), max_size=6
)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_by_columns_and_by_rows_give_the_same_bytes(rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    lines = [row_line(row) for row in batch.to_pylist()]
    assert row_lines(batch) == lines
    assert json_lines(batch) == b"".join(lines)
    openai = [orjson.dumps({"messages": orjson.Fragment(row["messages"])}) + b"\n" for row in rows]
    assert message_lines(batch) == b"".join(openai)


@pytest.mark.parametrize(("start", "length"), [(0, 9), (3, 4), (8, 1), (5, 0)])
def test_slices_of_a_batch_give_their_own_lines(start: int, length: int) -> None:
    none = dict.fromkeys(SCHEMA.names)
    rows = [
        {**none, "position": n, "origin": "task", "example_id": f"{n:032x}", "ordinal": n, "messages": f'["{n}é"]',
         "source": "a\"b" if n == 4 else None}
        for n in range(9)
    ]  # fmt: skip
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA).slice(start, length)
    assert json_lines(batch) == b"".join(map(row_line, batch.to_pylist()))
    assert message_lines(batch).count(b"\n") == length


@pytest.mark.parametrize(
    ("column", "value"), [("example_id", '0","rank":1,"x":"'), ("origin", "é\n"), ("position", None)]
)
def test_rows_of_a_file_that_no_one_of_ours_wrote_are_escaped(column: str, value: object) -> None:
    none = dict.fromkeys(SCHEMA.names)
    good = {**none, "position": 0, "origin": "task", "example_id": "0" * 32, "ordinal": 0, "messages": "[]"}
    schema = pa.schema([field.with_nullable(True) for field in SCHEMA])
    batch = pa.RecordBatch.from_pylist([good, {**good, column: value}], schema)
    assert row_lines(batch) == [row_line(row) for row in batch.to_pylist()]
