import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpus.formats import (
    CODES,
    Container,
    Detected,
    Layout,
    Reject,
    Row,
    detect,
    read_rows,
    read_values,
)
from curator.errors import BadInputError, MissingError
from curator.messages import dump_messages, example_id

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CHAT = {"messages": [USER, ANSWER]}
SHARE = {"id": "s1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


def _read(data: bytes | str, name: str = "x.jsonl", **options: Any) -> list[Row | Reject]:
    return list(read_rows(io.BytesIO(data if isinstance(data, bytes) else data.encode()), name=name, **options))


def _lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _one(record: object) -> Row | Reject:
    (item,) = read_values([record])
    return item


def _codes(item: Row | Reject) -> list[tuple[str, str]]:
    assert isinstance(item, Reject), item
    return [(problem.pointer, problem.code) for problem in item.problems]


def _parquet(records: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), buffer)
    return buffer.getvalue()


FILES: list[tuple[bytes, str, Container, Layout]] = [
    (_lines(CHAT, CHAT), "a.jsonl", "jsonl", "messages"),
    (_lines(SHARE, SHARE), "a.json", "jsonl", "sharegpt"),
    (json.dumps([CHAT, CHAT]).encode(), "a.json", "json", "messages"),
    (json.dumps([SHARE, SHARE], indent=2).encode(), "a.json", "json", "sharegpt"),
    (json.dumps([SHARE, SHARE], indent=2).encode(), "a.jsonl", "json", "sharegpt"),
    (b"[\n" + b",\n".join(_lines(SHARE, SHARE).split(b"\n")[:2]) + b"\n]", "a.json", "json", "sharegpt"),
    (json.dumps(CHAT, indent=1).encode() + b"\n" + json.dumps(CHAT, indent=1).encode(), "a.json", "json", "messages"),
    (b"\xef\xbb\xbf" + _lines(CHAT, CHAT), "a.txt", "jsonl", "messages"),
    (b"\xef\xbb\xbf \r\n" + json.dumps([CHAT, CHAT]).encode(), "a.json", "json", "messages"),
    (_parquet([CHAT, CHAT]), "a.bin", "parquet", "messages"),
    (_parquet([SHARE, SHARE]), "a.parquet", "parquet", "sharegpt"),
    (_parquet([{"messages": json.dumps(CHAT["messages"])}] * 2), "a.parquet", "parquet", "messages"),
]


@pytest.mark.parametrize(("data", "name", "container", "layout"), FILES)
def test_every_container_and_layout_gives_the_same_conversation(
    data: bytes, name: str, container: Container, layout: Layout
) -> None:
    found = detect(io.BytesIO(data), name=name)
    if name != "a.parquet" or layout == "sharegpt":
        assert found == Detected(container, layout)
    for options in ({}, {"format": container}):
        rows = _read(data, name, **options)
        assert [row.messages for row in rows if isinstance(row, Row)] == [[USER, ANSWER]] * 2
        assert [row.record for row in rows] == [1, 2]
        assert [row.line for row in rows] == ([1, 2] if container == "jsonl" else [None, None])


def test_one_conversation_has_one_id_in_every_layout() -> None:
    rows = [_one(CHAT), _one(SHARE), _one({"conversations": CHAT["messages"]})]
    assert len({example_id(dump_messages(row.messages)) for row in rows if isinstance(row, Row)}) == 1
    assert isinstance(rows[1], Row)
    assert rows[1].source_id == "s1"


@pytest.mark.parametrize("name", ["human", "user"])
def test_sharegpt_users(name: str) -> None:
    row = _one({"conversations": [{"from": name, "value": "q"}, {"from": "gpt", "value": "a"}]})
    assert isinstance(row, Row)
    assert [message["role"] for message in row.messages] == ["user", "assistant"]


@pytest.mark.parametrize("name", ["gpt", "chatgpt", "bard", "bing", "assistant"])
def test_sharegpt_assistants_may_begin(name: str) -> None:
    row = _one({"conversations": [{"from": name, "value": "a"}, {"from": "human", "value": "q"}]})
    assert isinstance(row, Row)
    assert [message["role"] for message in row.messages] == ["assistant", "user"]


def test_system_tool_and_many_turns_survive() -> None:
    turns = [("system", "be brief"), ("user", "1"), ("assistant", "a"), ("tool", "42"), ("assistant", "b\n ")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for record in ({"messages": messages}, {"conversations": [{"from": r, "value": c} for r, c in turns]}):
        row = _one(record)
        assert isinstance(row, Row)
        assert row.messages == messages


def test_labels_names_and_ids_are_read() -> None:
    record = {**CHAT, "id": 7, "domain": "law", "harm": False, "language": None, "license": "", "other": [1]}
    row = _one(record)
    assert isinstance(row, Row)
    assert (row.source_id, row.labels) == ("7", {"domain": "law", "harm": "false"})
    named = _one({"messages": [{**USER, "name": "ann", "weight": None}, {**ANSWER, "weight": 1, "refusal": None}]})
    assert isinstance(named, Row)
    assert named.messages == [{**USER, "name": "ann"}, ANSWER]


BAD: list[tuple[Any, str, str]] = [
    ([1], "", "data_type"),
    ("text", "", "data_type"),
    (None, "", "data_type"),
    ({}, "/messages", "missing_messages_list"),
    ({"messages": "hi"}, "/messages", "missing_messages_list"),
    ({"conversations": {}}, "/conversations", "missing_messages_list"),
    ({"messages": []}, "/messages", "empty_messages_list"),
    ({"messages": ["hi", ANSWER]}, "/messages/0", "data_type"),
    ({"messages": [{"content": "x"}, ANSWER]}, "/messages/0/role", "message_missing_key"),
    ({"messages": [{"role": "user"}, ANSWER]}, "/messages/0/content", "message_missing_key"),
    ({"messages": [{"role": "human", "content": "x"}, ANSWER]}, "/messages/0/role", "unrecognized_role"),
    ({"messages": [{"role": 1, "content": "x"}, ANSWER]}, "/messages/0/role", "unrecognized_role"),
    ({"messages": [{"role": "user", "content": None}, ANSWER]}, "/messages/0/content", "missing_content"),
    ({"messages": [{"role": "user", "content": 5}, ANSWER]}, "/messages/0/content", "missing_content"),
    ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "/messages/1/content", "missing_content"),
    ({"messages": [USER]}, "/messages", "example_missing_assistant_message"),
    ({"messages": [{**USER, "mood": "x/y"}, ANSWER]}, "/messages/0/mood", "unrecognized_key"),
    ({"messages": [{**USER, "name": 5}, ANSWER]}, "/messages/0/name", "unrecognized_key"),
    ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "/messages/1/weight", "invalid_weight"),
    ({"messages": [USER, {**ANSWER, "weight": True}]}, "/messages/1/weight", "invalid_weight"),
    ({"messages": [USER, {**ANSWER, "weight": 0}]}, "/messages", "no_trained_answer"),
    ({"messages": [{**USER, "content": [{"type": "text"}]}, ANSWER]}, "/messages/0/content/0/text", "missing_content"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "/messages/1/tool_calls/0", "invalid_tool_call"),
    ({**CHAT, "tools": [{}]}, "/tools", "tool_definitions"),
    ({"messages": [{"role": "user", "content": "\ud800"}, ANSWER]}, "/messages/0/content", "invalid_unicode"),
    ({**CHAT, "domain": "\udfff"}, "/domain", "invalid_unicode"),
    ({**CHAT, "id": "\udfff"}, "/id", "invalid_unicode"),
    ({**CHAT, "language": ["en"]}, "/language", "invalid_label"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "pointer", "code"), BAD)
def test_bad_records_have_a_code_and_a_pointer(record: Any, pointer: str, code: str) -> None:
    assert _codes(_one(record)) == [(pointer, code)]
    assert code in CODES


def test_everything_wrong_with_a_record_is_reported_at_once() -> None:
    record = {"messages": [{"role": "x", "content": None}, {"role": "assistant", "content": "", "mood": 1}]}
    assert _codes(_one(record)) == [
        ("/messages/0/role", "unrecognized_role"),
        ("/messages/0/content", "missing_content"),
        ("/messages/1/content", "missing_content"),
        ("/messages/1/mood", "unrecognized_key"),
    ]


def test_a_named_layout_is_not_second_guessed() -> None:
    (item,) = _read(_lines(SHARE), layout="messages")
    assert _codes(item) == [("/messages", "missing_messages_list")]
    (item,) = _read(_lines(CHAT), layout="sharegpt")
    assert _codes(item) == [("/conversations", "missing_messages_list")]


BAD_LINES: list[tuple[bytes, str]] = [
    (b"{oops}", "invalid_json"),
    (b'{"messages": NaN}', "invalid_json"),
    (b'{"messages": "a\x00b"}', "invalid_json"),
    (b"[" * 100_000, "invalid_json"),
    (b'{"id": ' + b"9" * 5_000 + b"}", "invalid_json"),
    (b'{"messages": [], "messages": []}', "duplicate_key"),
    (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "duplicate_key"),
    (b'{"messages": "\xff"}', "invalid_unicode"),
    (b'{"messages": [{"role": "assistant", "content": "\\ud83d"}]}', "invalid_unicode"),
    (b"{} x", "invalid_json"),
]


@pytest.mark.parametrize(("line", "code"), BAD_LINES)
def test_a_bad_line_does_not_stop_the_file(line: bytes, code: str) -> None:
    data = _lines(CHAT) + b"\r\n \n" + line + b"\r\n" + _lines(CHAT) + b"\n\n"
    first, bad, last = _read(data)
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(bad, Reject)
    assert (bad.record, bad.line, bad.code) == (2, 4, code)
    assert (last.record, last.line) == (3, 5)


@pytest.mark.parametrize(("line", "code"), BAD_LINES[1:3] + BAD_LINES[5:])
def test_a_bad_record_does_not_stop_an_array(line: bytes, code: str) -> None:
    good = json.dumps(CHAT).encode()
    rows = _read(b"[" + good + b",\n" + line + b", " + good + b"]", "a.json")
    assert [type(row) for row in rows] == [Row, Reject, Row]
    assert _codes(rows[1])[0][1] == code


def test_the_byte_offset_is_where_decoding_failed() -> None:
    line = '{"messages": "é" oops}'.encode()
    for data in (_lines(CHAT) + line + b"\n", b"[" + _lines(CHAT) + b"," + line + b"]"):
        bad = _read(data, "a")[1]
        assert isinstance(bad, Reject)
        assert bad.byte_offset is not None
        assert data[bad.byte_offset :].startswith(b"oops")


def test_a_last_line_without_its_end_is_truncated() -> None:
    whole = _lines(CHAT, CHAT)
    first, bad = _read(whole[:-10])
    assert isinstance(first, Row)
    assert isinstance(bad, Reject)
    assert (bad.code, bad.byte_offset) == ("truncated_json", len(whole) - 10)
    assert len(_read(whole[:-1])) == 2


def test_text_after_an_array_is_reported() -> None:
    rows = _read(json.dumps([CHAT]).encode() + b" \n {}", "a.json")
    assert [type(row) for row in rows] == [Row, Reject]
    assert _codes(rows[1]) == [("", "invalid_json")]


def test_contents_may_hold_json_brackets_and_nul() -> None:
    text = '"]}, {"from": "human"\\ \u0000 \U0001f600 ['
    record = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    for data in (json.dumps([record] * 2), json.dumps([record] * 2, ensure_ascii=False)):
        rows = _read(data, "a.json")
        assert [row.messages[1]["content"] for row in rows if isinstance(row, Row)] == [text] * 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf \n", "it is empty"),
        (b"PK\x03\x04rest", "is zip"),
        (b"\xff\xfe[\x00", "is UTF-16"),
        (b"one,two\na,b\n", "neither JSON Lines"),
        (b"PAR1 cut", "not a whole Parquet file"),
        (_parquet([{"text": "x"}]), "neither a column messages nor conversations, .* but text"),
    ],
)
def test_files_that_cannot_be_read_say_why(data: bytes, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        _read(data, "file.txt")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no file"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(BadInputError, match="cannot be read"):
        list(read_rows(tmp_path))


def test_a_damaged_parquet_file_gives_its_rows_and_one_reject() -> None:
    buffer = io.BytesIO()
    chat = {"messages": [{"role": "user", "content": "x" * 50}, ANSWER]}
    pq.write_table(pa.Table.from_pylist([chat] * 1_000), buffer, row_group_size=500, compression="none")
    data = bytearray(buffer.getvalue())
    start = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    rows = _read(bytes(data), "a.parquet")
    assert {type(row) for row in rows[:-1]} == {Row}
    assert _codes(rows[-1]) == [("", "invalid_parquet")]


def test_parquet_nulls_are_absent_keys() -> None:
    messages = [{**USER, "name": None}, {**ANSWER, "name": "bot"}]
    (row,) = _read(_parquet([{"messages": messages, "domain": None}]), "a.parquet")
    assert isinstance(row, Row)
    assert row.messages == [USER, {**ANSWER, "name": "bot"}]


def test_parquet_text_that_is_not_utf8_is_one_bad_row() -> None:
    good = json.dumps(CHAT["messages"]).encode()
    texts = pa.array([good, b"\xff\xfe", good], pa.binary()).view(pa.string())
    buffer = io.BytesIO()
    pq.write_table(pa.table({"messages": texts}), buffer)
    rows = _read(buffer.getvalue(), "a.parquet")
    assert [type(row) for row in rows] == [Row, Reject, Row]
    assert _codes(rows[1]) == [("", "invalid_unicode")]


def test_a_wrong_override_is_a_bad_record_and_not_a_crash() -> None:
    assert _codes(_read(_lines(CHAT), format="parquet")[0]) == [("", "invalid_parquet")]
    assert {type(row) for row in _read(_parquet([CHAT]), format="jsonl")} == {Reject}
    assert {type(row) for row in _read(_parquet([CHAT]), format="json")} == {Reject}
