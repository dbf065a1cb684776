"""Alpaca, prompt/completion, tool calls, weights, content parts, and data that is not for this kind of training."""

import json
import unicodedata
from pathlib import Path
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from curator.corpus.formats import (
    CODES,
    CONTAINERS,
    LAYOUTS,
    Layout,
    Reject,
    Row,
    read_values,
)
from curator.messages import example_id

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def _one(record: object, layout: Layout | None = None) -> Row | Reject:
    (item,) = read_values([record], layout=layout)
    return item


def _messages(record: object, layout: Layout | None = None) -> list[dict[str, Any]]:
    item = _one(record, layout)
    assert isinstance(item, Row), item
    assert json.loads(item.json) == item.messages
    return item.messages


def _codes(record: object, layout: Layout | None = None) -> list[tuple[str, str]]:
    item = _one(record, layout)
    assert isinstance(item, Reject), item
    assert {problem.code for problem in item.problems} <= set(CODES)
    return [(problem.pointer, problem.code) for problem in item.problems]


SAME: list[dict[str, Any]] = [
    {"messages": [USER, ANSWER]},
    {"messages": [{"content": "Hi", "role": "user", "name": None}, {"weight": 1, **ANSWER}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, ANSWER]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"instruction": "Hi", "output": "Hello"},
    {"instruction": "Hi", "input": "", "output": "Hello", "text": "### Instruction: Hi"},
    {"instruction": "", "input": "Hi", "output": "Hello", "prompt": "Below is an instruction. Hi", "history": []},
    {"prompt": "Hi", "completion": "Hello"},
    {"prompt": [USER], "completion": [ANSWER], "label": 3, "tools": []},
    {"prompt": "Hi", "messages": [USER, {**ANSWER, "tool_calls": [], "reasoning_content": ""}], "images": []},
]


def test_one_conversation_has_one_id_in_every_layout() -> None:
    ids = {example_id(item.json) for record in SAME if isinstance(item := _one(record), Row)}
    assert len(ids) == 1
    assert all(_messages(record) == [USER, ANSWER] for record in SAME)


def test_an_alpaca_question_is_instruction_and_input_on_two_lines() -> None:
    record = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief", "history": [["a", "b"]]}
    assert _messages(record) == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "Add\n1 2"},
        {"role": "assistant", "content": "3"},
    ]


def test_a_conversational_prompt_is_context() -> None:
    record = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert _messages(record) == [USER, {**ANSWER, "weight": 0}, USER, ANSWER]


def test_a_system_field_is_the_system_message_once() -> None:
    system = {"role": "system", "content": "Be brief"}
    assert _messages({"messages": [USER, ANSWER], "system": "Be brief"}) == [system, USER, ANSWER]
    assert _messages({"messages": [system, USER, ANSWER], "system": "Be brief"}) == [system, USER, ANSWER]
    assert _codes({"messages": [system, USER, ANSWER], "system": "Be long"}) == [("/system", "conflicting_system")]


CALLS: list[tuple[list[dict[str, Any]], str]] = [
    ([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "messages"),
    ([USER, {"role": "assistant", "tool_calls": [{**CALL, "id": None, "index": 0}]}], "messages"),
    ([USER, {"role": "assistant", "content": "", "tool_calls": [CALL["function"]]}], "messages"),
    ([USER, {"role": "assistant", "content": None, "function_call": CALL["function"]}], "messages"),
    (
        [
            {"from": "human", "value": "Hi"},
            {"from": "function_call", "value": json.dumps({"name": "f", "arguments": '{"x": 1}'})},
        ],
        "conversations",
    ),
]


@pytest.mark.parametrize(("turns", "key"), CALLS)
def test_tool_calls_have_one_form(turns: list[dict[str, Any]], key: str) -> None:
    call = {"function": {"arguments": '{"x": 1}', "name": "f"}, "type": "function"}
    assert _messages({key: turns}) == [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]


def test_tool_answers_keep_their_call() -> None:
    turns = [
        USER,
        {"role": "assistant", "content": "Let me see", "tool_calls": [{**CALL, "id": "c1"}]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "function", "name": "f", "content": "43"},
        ANSWER,
    ]
    messages = _messages({"messages": turns})
    assert messages[1]["tool_calls"][0]["id"] == "c1"
    assert messages[2:4] == [turns[2], {"role": "tool", "content": "43", "name": "f"}]
    share = [{"from": "human", "value": "q"}, {"from": "observation", "value": "42"}, {"from": "gpt", "value": "a"}]
    assert _messages({"conversations": share})[1] == {"role": "tool", "content": "42"}


def test_arguments_stay_objects_in_their_own_key_order() -> None:
    orders = [{"a": 1, "b": None}, {"b": None, "a": 1}]
    calls = [{**CALL, "function": {"name": "f", "arguments": arguments}} for arguments in orders]
    rows = [_one({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}) for call in calls]
    kept = [json.loads(row.json)[1]["tool_calls"][0]["function"]["arguments"] for row in rows]  # type: ignore[union-attr]
    assert [list(arguments.items()) for arguments in kept] == [list(arguments.items()) for arguments in orders]


def test_weights_developer_and_thinking_are_kept() -> None:
    turns = [
        {"role": "developer", "content": "Be brief"},
        {**USER, "weight": 0},
        {**ANSWER, "weight": 0},
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
    ]
    assert _messages({"messages": turns}) == [turns[0], USER, turns[2], USER, turns[4]]


def _answered(**answer: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", **answer}]}


def _called(arguments: Any) -> dict[str, Any]:
    return _answered(tool_calls=[{"name": "f", "arguments": arguments}])


def _asked(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER]}


TEXT = {"type": "text", "text": "x"}
REFUSED: list[tuple[Any, str, str]] = [
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "/chosen", "preference_pairs"),
    ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "/chosen", "preference_pairs"),
    ({"messages": [USER, ANSWER], "chosen": [ANSWER], "rejected": [ANSWER]}, "/chosen", "preference_pairs"),
    ({"conversations": [], "chosen": {"value": "a"}, "rejected": {"value": "b"}}, "/chosen", "preference_pairs"),
    ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "/preferred_output", "preference_pairs"),
    ({"prompt": "q", "completion": "a", "label": True}, "/label", "preference_labels"),
    ({"prompt": [USER], "completion": [ANSWER], "label": False}, "/label", "preference_labels"),
    ({"messages": [USER, ANSWER], "kto_tag": False}, "/kto_tag", "preference_labels"),
    (_asked(TEXT, {"type": "image_url", "image_url": {"url": "u"}}), "/messages/0/content/1", "image_content"),
    (_asked({"type": "input_audio", "input_audio": {}}), "/messages/0/content/0", "audio_content"),
    (_asked({"type": "video"}), "/messages/0/content/0", "video_content"),
    (_asked({"type": "refusal", "refusal": "no"}), "/messages/0/content/0", "unsupported_content_part"),
    (_asked({**TEXT, "cache": 1}), "/messages/0/content/0", "unrecognized_key"),
    (_asked(5), "/messages/0/content/0", "data_type"),
    ({"messages": [USER, ANSWER], "images": ["a.png"]}, "/images", "image_content"),
    (_answered(content="x", audio={"id": "a"}), "/messages/1/audio", "audio_content"),
    (_answered(content="x", reasoning_content="hm"), "/messages/1/reasoning_content", "reasoning_content"),
    (_answered(content="x", thinking="hm"), "/messages/1/thinking", "reasoning_content"),
    (_answered(tool_calls=[CALL], function_call=CALL["function"]), "/messages/1/function_call", "invalid_tool_call"),
    (_answered(tool_calls="x"), "/messages/1/tool_calls", "invalid_tool_call"),
    (_answered(tool_calls=[{**CALL, "type": "custom"}]), "/messages/1/tool_calls/0", "invalid_tool_call"),
    (_answered(tool_calls=[{"name": "f"}]), "/messages/1/tool_calls/0", "invalid_tool_call"),
    (_called({"x": 2**70}), "/messages/1/tool_calls/0", "invalid_tool_call"),
    (_called({"x": float("inf")}), "/messages/1/tool_calls/0", "invalid_tool_call"),
    (_called({"é": 1, "e\u0301": 2}), "/messages/1/tool_calls/0", "invalid_tool_call"),
    (_answered(tool_calls=[{**CALL, "extra": 1}]), "/messages/1/tool_calls/0", "invalid_tool_call"),
    ({"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]}, "/messages/0/tool_calls", "invalid_tool_call"),
    ({"conversations": [{"from": "function_call", "value": "{"}]}, "/conversations/0/value", "invalid_tool_call"),
    ({"messages": [USER, ANSWER], "tools": '[{"name": "f"}]'}, "/tools", "tool_definitions"),
    ({"messages": [USER, {**ANSWER, "weight": 0}]}, "/messages", "no_trained_answer"),
    ({"prompt": [USER, ANSWER], "completion": [USER]}, "/completion", "example_missing_assistant_message"),
    ({"prompt": "q", "completion": [ANSWER]}, "/completion", "data_type"),
    ({"prompt": "q", "completion": " "}, "/completion", "missing_content"),
    ({"prompt": "", "completion": "a"}, "/prompt", "missing_content"),
    ({"prompt": "q", "completion": None}, "/completion", "missing_content"),
    ({"instruction": "q", "output": ""}, "/output", "missing_content"),
    ({"instruction": "q"}, "/output", "missing_content"),
    ({"instruction": "", "input": "", "output": "a"}, "/instruction", "missing_content"),
    ({"instruction": "q", "output": "a", "history": [["x"]]}, "/history/0", "invalid_history"),
    ({"instruction": "q", "output": "a", "history": "x"}, "/history", "invalid_history"),
    ({"text": "just text"}, "/messages", "missing_messages_list"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "pointer", "code"), REFUSED)
def test_what_cannot_be_kept_has_its_own_code(record: Any, pointer: str, code: str) -> None:
    assert _codes(record) == [(pointer, code)]


def test_a_named_layout_reads_past_preferences() -> None:
    record = {"messages": [USER, ANSWER], "chosen": [ANSWER], "rejected": [ANSWER]}
    assert _messages(record, "messages") == [USER, ANSWER]
    assert _messages({"prompt": "Hi", "completion": "Hello", "label": True}, "prompt_completion") == [USER, ANSWER]


def test_every_code_container_and_layout_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    missing = [word for word in (*CODES, *CONTAINERS, *LAYOUTS) if f"`{word}`" not in text]
    assert missing == []


TEXTS = st.text(min_size=1, max_size=6).filter(lambda text: text.strip() != "")


@settings(deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_different_texts_never_share_an_id(q1: str, a1: str, q2: str, a2: str) -> None:
    rows = [_one({"prompt": q, "completion": a}) for q, a in ((q1, a1), (q2, a2))]
    one, other = (row for row in rows if isinstance(row, Row))
    assert (example_id(one.json) == example_id(other.json)) == (one.messages == other.messages)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
def test_part_borders_and_layouts_do_not_count(parts: list[str], answer: str) -> None:
    question = "".join(parts)
    content = [{"type": "text", "text": part} for part in parts]
    records: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": content}, {"content": answer, "role": "assistant"}]},
        {"conversations": [{"from": "human", "value": question}, {"value": answer, "from": "gpt"}]},
        {"output": answer, "input": None, "instruction": question},
        {"completion": answer, "prompt": question},
    ]
    assert len({row.json for record in records if isinstance(row := _one(record), Row)}) == 1


@settings(deadline=None)
@given(TEXTS, TEXTS, st.sampled_from(["NFC", "NFD"]), st.booleans(), st.booleans())
def test_unicode_form_line_ends_and_key_order_do_not_count(
    question: str, answer: str, form: Literal["NFC", "NFD"], turned: bool, windows: bool
) -> None:
    def written(text: str) -> str:
        text = unicodedata.normalize(form, text)
        return text.replace("\r", "").replace("\n", "\r\n") if windows else text

    def record(*texts: str) -> dict[str, Any]:
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
        return {"messages": [dict(reversed(turn.items())) for turn in turns] if turned else turns}

    plain = [text.replace("\r", "") if windows else text for text in (question, answer)]
    if all(text.strip() for text in plain):
        one, other = _one(record(*plain)), _one(record(written(question), written(answer)))
        assert isinstance(one, Row)
        assert isinstance(other, Row)
        assert one.json == other.json
