"""The `openai` download is in OpenAI's chat form: its own rules for tool calls and their answers hold."""

import json
from typing import Any

import pyarrow as pa
import pytest

from curator.corpus.formats import Row, read_values
from curator.messages import openai_messages
from curator.mix.files import message_lines
from curator.store.schema import MIX_ROWS
from curator.store.store import arrow_schema
from tests.field.fields import kept

Messages = list[dict[str, Any]]
USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def _call(call_id: str | None = None, arguments: Any = None) -> dict[str, Any]:
    call: dict[str, Any] = {"type": "function", "function": {"name": "f", "arguments": arguments or {"b": 1, "a": "é"}}}
    return call if call_id is None else {"id": call_id, **call}


def _tool(call_id: str | None = None, text: str = "3") -> dict[str, Any]:
    return {"role": "tool", "content": text} | ({} if call_id is None else {"tool_call_id": call_id})


def _calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def _download(conversations: list[Messages]) -> list[Messages]:
    rows = [{**dict.fromkeys(arrow_schema(MIX_ROWS).names), "position": n, "origin": "task", "example_id": f"{n:032x}",
             "messages": json.dumps(messages, separators=(",", ":"), ensure_ascii=False)}
            for n, messages in enumerate(conversations)]  # fmt: skip
    lines = message_lines(pa.RecordBatch.from_pylist(rows, arrow_schema(MIX_ROWS))).splitlines()
    records = [json.loads(line) for line in lines]
    assert all(list(record) == ["messages"] for record in records)
    return [record["messages"] for record in records]


def _check(messages: Messages) -> None:
    """The required fields of the API's message types, and its rule that an answer follows the call it names."""
    open_ids: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in open_ids, message
            open_ids.remove(message["tool_call_id"])
            assert isinstance(message["content"], str)
            continue
        for call in message.get("tool_calls", []):
            assert set(call) == {"id", "type", "function"}
            assert isinstance(call["id"], str)
            assert call["id"] not in open_ids
            assert call["type"] == "function"
            assert set(call["function"]) == {"name", "arguments"}
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
        open_ids = {call["id"] for call in message.get("tool_calls", [])} or open_ids


CASES: list[tuple[Messages, list[str], list[str]]] = [
    ([USER, _calling(_call("x")), _tool("x"), ANSWER], ["x"], ["x"]),
    ([USER, _calling(_call()), _tool(), ANSWER], ["call_1"], ["call_1"]),
    ([USER, _calling(_call()), _tool("y"), ANSWER], ["y"], ["y"]),
    ([USER, _calling(_call("x")), _tool(), ANSWER], ["x"], ["x"]),
    ([USER, _calling(_call("x"), _call("y")), _tool("y"), _tool("x"), ANSWER], ["x", "y"], ["y", "x"]),
    ([USER, _calling(_call(), _call()), _tool(), _tool(), ANSWER], ["call_1", "call_2"], ["call_1", "call_2"]),
    ([USER, _calling(_call(), _call("x")), _tool("x"), _tool(), ANSWER], ["call_1", "x"], ["x", "call_1"]),
    (
        [USER, _calling(_call()), _tool(), _calling(_call()), _tool(), ANSWER],
        ["call_1", "call_2"],
        ["call_1", "call_2"],
    ),
    ([USER, _calling(_call("call_1")), _tool("call_1"), _calling(_call())], ["call_1", "call_2"], ["call_1"]),
    ([USER, _calling(_call(), _call())], ["call_1", "call_2"], []),
]


@pytest.mark.parametrize(("messages", "call_ids", "answer_ids"), CASES)
def test_every_call_and_answer_has_its_id(messages: Messages, call_ids: list[str], answer_ids: list[str]) -> None:
    (found,) = _download([messages])
    _check(found)
    assert [call["id"] for turn in found for call in turn.get("tool_calls", [])] == call_ids
    assert [turn["tool_call_id"] for turn in found if turn["role"] == "tool"] == answer_ids
    assert [(turn["role"], turn["content"]) for turn in found] == [(turn["role"], turn["content"]) for turn in messages]


def test_arguments_are_text_in_the_writers_order() -> None:
    texts = ({"b": 1, "a": {"d": "é", "c": None}}, '{"b":  1}', "")
    found = openai_messages([USER, _calling(*(_call("x", text) for text in texts[:2]), {**_call("z"), "function": {
        "name": "f", "arguments": ""}})])  # fmt: skip
    written = [call["function"]["arguments"] for call in found[1]["tool_calls"]]
    assert written == ['{"b":1,"a":{"d":"é","c":null}}', '{"b":  1}', "{}"]


@pytest.mark.parametrize(
    "name", ["tool_args_mixed_keys", "tool_args_order_object", "tool_args_text", "tool_turn_dropped"]
)
def test_files_of_people_come_out_in_the_form(name: str) -> None:
    conversations = kept(f"{name}.jsonl")
    found = _download(conversations)
    for messages in found:
        _check(messages)
    again = [
        row.messages for row in read_values([{"messages": messages} for messages in found]) if isinstance(row, Row)
    ]
    assert [[turn["role"] for turn in turns] for turns in again] == [
        [turn["role"] for turn in c] for c in conversations
    ]


def test_rows_without_calls_are_the_very_bytes() -> None:
    plain = [USER, {"role": "assistant", "content": 'Say "tool_calls":[ or {"role":"tool"}', "weight": 0}, USER, ANSWER]
    assert _download([plain, [USER, _calling(_call("x")), _tool("x"), ANSWER], plain])[::2] == [plain, plain]
