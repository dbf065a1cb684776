"""Tool calls keep the order in which they were written: in the store, in the text that is trained, in downloads."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from curator.corpus.formats import Row, read_values
from curator.messages import dump_messages, example_id, load_messages
from curator.render import Renderer
from tests.field.fields import INPUTS, kept, template
from tests.models import tiny_tokenizer_folder

Messages = list[dict[str, Any]]

PLAIN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
EVERY_KEY = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "Q", "name": "ann"},
    {"role": "assistant", "content": "A", "weight": 0},
    {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"},
    {"role": "assistant", "content": "B"},
]
# Objects in lists in objects, keys in an order that no sorting gives.
NESTED = {"zeta": [{"b": 1, "a": {"y": None, "x": True}}], "alpha": {"schema": {"type": "object", "properties": {}}}}


def _written(arguments: Any, **call: Any) -> Messages:
    calls = [{"id": "abc123xyz", "type": "function", "function": {"name": "plan", "arguments": arguments}, **call}]
    return [
        {"role": "user", "content": "Trip?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "abc123xyz", "content": "ok"},
        {"role": "assistant", "content": "Done."},
    ]


def _kept(record: dict[str, Any]) -> Messages:
    (row,) = read_values([record])
    assert isinstance(row, Row), row
    return load_messages(row.json.decode())


def _reference(folder: Path, messages: Messages) -> str:
    text: str = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    return text


def _rendered(folder: Path, messages: Messages) -> str:
    ids = Renderer.from_folder(folder).render(messages).input_ids.tolist()
    text: str = AutoTokenizer.from_pretrained(folder).decode(ids)
    return text


@pytest.fixture(scope="module", params=["arguments_tojson", "calls_list_tojson", "function_tojson"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name: str = request.param
    added = ("[INST]", "[/INST]", "[TOOL_CALLS]") if name == "function_tojson" else ("<|tool_call|>",)
    source = template(name)
    return tiny_tokenizer_folder(tmp_path_factory.mktemp(name), source, bos="<|endoftext|>", added=added)


def test_the_writers_order_is_rendered_as_transformers_does(folder: Path) -> None:
    (record,) = [json.loads(line) for line in (INPUTS / "tool_args_order_object.jsonl").read_text().splitlines()]
    written: Messages = record["messages"]
    expected = _reference(folder, [{**turn, "content": turn["content"] or ""} for turn in written])
    assert '{"reasoning": "Two days fit.", "city": "Oslo", "answer": 2}' in expected
    assert _rendered(folder, kept("tool_args_order_object.jsonl")[0]) == expected


@pytest.mark.parametrize(
    "messages",
    [
        _written(NESTED),
        _written({"b": "ä", "ä": "b", "a": []}),
        _written({"b": 1, "a": 2}, function={"arguments": {"b": 1, "a": 2}, "name": "plan"}),
    ],
    ids=["nested", "accents", "name_last"],
)
def test_any_depth_is_kept_in_order(folder: Path, messages: Messages) -> None:
    assert dump_messages(_kept({"messages": messages})) == json.dumps(
        [_ordered(turn) for turn in messages], separators=(",", ":"), ensure_ascii=False
    )
    assert _rendered(folder, _kept({"messages": messages})) == _reference(folder, messages)


def _ordered(turn: dict[str, Any]) -> dict[str, Any]:
    """Role and content first: the keys of a message itself have one order."""
    return {key: turn[key] for key in ("role", "content", "tool_calls", "tool_call_id") if key in turn}


def test_order_is_part_of_the_id() -> None:
    ids = {example_id(dump_messages(_kept({"messages": _written(a)}))) for a in ({"a": 1, "b": 2}, {"b": 2, "a": 1})}
    assert len(ids) == 2


def test_ids_without_tool_calls_are_what_they_were() -> None:
    found = [example_id(dump_messages(_kept({"messages": turns}))) for turns in (PLAIN, EVERY_KEY)]
    assert found == ["b6438e2cdba01ceb65e1a8603ba2fcbc", "a00aea837aa9949c9cfad4a68f236a06"]


@pytest.mark.parametrize("spelling", ["sharegpt", "function_call", "bare", "columns"])
def test_every_spelling_of_a_call_keeps_the_order(spelling: str, tmp_path: Path) -> None:
    function = {"name": "plan", "arguments": {"b": 1, "a": {"d": 1, "c": 2}}}
    asked, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": None}
    record: dict[str, Any] = {
        "sharegpt": {"conversations": [{"from": "human", "value": "Q"},
                                       {"from": "function_call", "value": json.dumps(function)}]},
        "function_call": {"messages": [asked, {**answer, "function_call": function}]},
        "bare": {"messages": [asked, {**answer, "tool_calls": [function]}]},
        "columns": {"messages": [asked, {**answer, "tool_calls": [{"type": "function", "function": function}]}]},
    }[spelling]  # fmt: skip
    if spelling == "columns":
        path = tmp_path / "calls.parquet"
        pq.write_table(pa.Table.from_pylist([record]), path)
        (messages,) = kept(path)
    else:
        messages = _kept(record)
    assert json.dumps(messages[1]["tool_calls"]) == json.dumps([{"type": "function", "function": function}])
