"""Records that say two things at once, or say one where no reader looks: refused by name, or kept as written."""

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpus.formats import Row, read_rows
from tests.field.fields import kept, refused

Record = dict[str, Any]

TALK = [{"role": "user", "content": "Which planet is largest?"}, {"role": "assistant", "content": "Jupiter is."}]
OTHER = [{"role": "user", "content": "And the smallest?"}, {"role": "assistant", "content": "Mercury."}]
RECORDS: dict[str, Record] = {
    "messages": {"messages": TALK},
    "sharegpt": {
        "conversations": [{"from": "human", "value": TALK[0]["content"]}, {"from": "gpt", "value": "Jupiter is."}]
    },
    "prompt_completion": {"prompt": TALK[0]["content"], "completion": "Jupiter is."},
    "alpaca": {"instruction": TALK[0]["content"], "output": "Jupiter is."},
}
ANSWERS = {"messages": "messages", "sharegpt": "conversations", "prompt_completion": "completion", "alpaca": "output"}
CHANGED: dict[str, Any] = {
    "messages": OTHER,
    "sharegpt": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "Mars."}],
    "prompt_completion": "Mars.",
    "alpaca": "Mars.",
}
PAIRS = [(one, other) for one in RECORDS for other in RECORDS if one != other]


def _file(path: Path, *records: Record) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_layouts_that_say_the_same_are_one_conversation(one: str, other: str, tmp_path: Path) -> None:
    empty: dict[str, Any] = dict.fromkeys(RECORDS[other], "")
    path = _file(tmp_path / "data.jsonl", RECORDS[one] | RECORDS[other], RECORDS[one] | empty)
    found = list(read_rows(path))
    assert isinstance(found[0], Row)
    assert found[0].messages == TALK


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_layouts_that_differ_are_refused_unless_one_is_named(one: str, other: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "data.jsonl", RECORDS[one] | RECORDS[other] | {ANSWERS[other]: CHANGED[other]})
    ((code, message),) = refused(path)
    assert code == "conflicting_layouts"
    assert "name the layout to read" in message
    assert kept(path, layout=one) == [TALK]


def test_a_part_of_a_conversation_beside_all_of_it_loses_nothing(tmp_path: Path) -> None:
    whole = [{"role": "system", "content": "Be brief."}, *TALK, *OTHER]
    path = _file(tmp_path / "data.jsonl", {"messages": whole} | RECORDS["alpaca"])
    assert kept(path) == [whole]
    cut = _file(tmp_path / "cut.jsonl", {"messages": TALK, "conversations": whole})
    assert refused(cut)[0][0] == "conflicting_layouts"


@pytest.mark.parametrize("key", ["response", "answer", "output", "completion"])
def test_a_last_answer_beside_the_turns_is_not_left_behind(key: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "data.jsonl", {"messages": [*TALK, OTHER[0]], key: "Mercury."})
    ((code, message),) = refused(path)
    assert code == "unrecognized_key"
    assert f"{key} beside messages would be left behind" in message
    assert kept(_file(tmp_path / "done.jsonl", {"messages": TALK, key: "Jupiter is."})) == [TALK]


PARTS = [{"type": "text", "text": "Hi, it's me"}]
AS_TEXT = [
    json.dumps(PARTS),
    " " + json.dumps(PARTS, indent=1),
    str(PARTS),
    json.dumps(
        [{"text": "a", "type": "text", "cache_control": None}, {"type": "image_url", "image_url": {"url": "x"}}]
    ),
    json.dumps([{"type": "text", "text": "a"}, {"type": "image"}]),
    r"[{'type': 'text', 'text': 'C:\dir'}]",  # an escape that Python warns of
]
NO_PARTS = [
    '[{"type": "text", "label": "Name"}]',
    '[{"type": "object"}]',
    '[{"type": "text", "text": 5}]',
    '[{"type": "text", "text": "a"}] is a list of parts',
    '[{"text": "a"}]',
    "[{'type': 'text', 'text': f()}]",
    "[]",
]


@pytest.mark.parametrize("text", AS_TEXT)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_content_parts_as_text_are_refused(text: str, role: str, tmp_path: Path) -> None:
    turns = [{**turn, "content": text} if turn["role"] == role else turn for turn in TALK]
    alpaca = {"instruction": "a", "output": "b"} | {"instruction" if role == "user" else "output": text}
    found = refused(_file(tmp_path / "data.jsonl", {"messages": turns}, {"messages": turns, "id": 1}, alpaca))
    assert found == [("data_type", "the text is a list of content parts: give the list, or its text")] * 3


@pytest.mark.parametrize("text", NO_PARTS)
def test_other_json_is_a_text(text: str, tmp_path: Path) -> None:
    turns = [TALK[0], {"role": "assistant", "content": text}]
    assert kept(_file(tmp_path / "data.jsonl", {"messages": turns})) == [turns]


def test_lists_of_messages_as_text_are_read_from_json_lines_as_from_columns(tmp_path: Path) -> None:
    prompt, completion = json.dumps(TALK[:1]), json.dumps(TALK[1:])
    records = [{"prompt": prompt, "completion": completion}, {"prompt": prompt, "completion": "A"}]
    assert kept(_file(tmp_path / "data.jsonl", *records)) == [
        TALK, [{"role": "user", "content": prompt}, {"role": "assistant", "content": "A"}]
    ]  # fmt: skip
    cut = refused(_file(tmp_path / "cut.jsonl", {"prompt": prompt, "completion": completion[:-1]}))
    assert [code for code, _ in cut] == ["invalid_json"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (1.5, "1.5"),
        (7.0, "7.0"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (2**70, str(2**70)),
        ({"$oid": "64f0"}, '{"$oid": "64f0"}'),
        (["a", 3], '["a", 3]'),
        ("x", "x"),
        ("", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("layout", RECORDS)
def test_an_id_is_kept_as_it_was_written(given: Any, found: str | None, layout: str, tmp_path: Path) -> None:
    (row,) = read_rows(_file(tmp_path / "data.jsonl", {**RECORDS[layout], "id": given}))
    assert isinstance(row, Row)
    assert row.source_id == found


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("layout", RECORDS)
def test_reasoning_beside_a_conversation_is_not_left_behind(key: str, layout: str, tmp_path: Path) -> None:
    record = RECORDS[layout]
    path = _file(tmp_path / "data.jsonl", {**record, key: "It has most mass."}, {**record, key: [{"text": "a"}]})
    found = refused(path)
    assert [code for code, _ in found] == ["reasoning_content"] * 2
    assert f"{key} beside the conversation would be left behind" in found[0][1]
    # What is in the answer already, or says whether there is any, is no reasoning that is lost.
    nothing = ("", None, [], "Jupiter", "on", "High", True, 3)
    assert kept(_file(tmp_path / "same.jsonl", *({**record, key: value} for value in nothing))) == [TALK] * len(nothing)


CALL_TEXT = '{"city": "Oslo"}'


@pytest.mark.parametrize("twice", [json.dumps(CALL_TEXT), json.dumps(json.dumps(CALL_TEXT)), json.dumps("[1]")])
def test_arguments_that_are_encoded_twice_are_refused(twice: str, tmp_path: Path) -> None:
    call = {"name": "f", "arguments": twice}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "assistant", "content": "", "function_call": call},
    ]
    share = [{"from": "human", "value": "Q"}, {"from": "function_call", "value": json.dumps(call)}]
    path = _file(tmp_path / "data.jsonl", *({"messages": [TALK[0], turn]} for turn in turns), {"conversations": share})
    message = "the arguments are JSON text inside a JSON text: decode them once"
    assert refused(path) == [("invalid_tool_call", message)] * 3


@pytest.mark.parametrize("text", [CALL_TEXT, "", "city=Oslo", '"Oslo"', '"a" and "b"', "[1]"])
def test_other_arguments_stay_as_they_are(text: str, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": text}}
    ((_, answer),) = kept(
        _file(
            tmp_path / "data.jsonl", {"messages": [TALK[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}
        )
    )
    assert answer["tool_calls"] == [call]


@pytest.mark.parametrize("key", ["instruction", "output", "system"])
def test_several_texts_in_a_list_are_not_joined(key: str, tmp_path: Path) -> None:
    record = {"system": "Be brief.", **RECORDS["alpaca"]}
    path = _file(tmp_path / "data.jsonl", {**record, key: ["One.", "Two."]})
    assert refused(path) == [
        ("data_type", "2 texts in a list: write them as one, or as parts of type text that are joined")
    ]
    one, parts = {**record, key: [record[key]]}, {**record, key: [{"type": "text", "text": record[key]}]}
    expected = [{"role": "system", "content": "Be brief."}, *TALK]
    assert kept(_file(tmp_path / "one.jsonl", one, parts)) == [expected, expected]


@pytest.mark.parametrize(
    ("layout", "label", "is_verdict"),
    [
        *((layout, label, True) for layout in RECORDS for label in (True, False, "False")),
        *(("prompt_completion", label, True) for label in (0, 1, 0.0, 1.0)),
        *(("messages", label, False) for label in (0, 1, 2, "law")),
        *(("prompt_completion", label, False) for label in (2, 0.5, "law", "", None)),
    ],
)
def test_answers_marked_as_good_or_bad_are_no_data_to_train_on(
    layout: Any, label: Any, is_verdict: bool, tmp_path: Path
) -> None:
    path = _file(tmp_path / "data.jsonl", {**RECORDS[layout], "label": label})
    if is_verdict:
        assert [code for code, _ in refused(path)] == ["preference_labels"]
        assert kept(path, layout=layout) == [TALK]
    else:
        assert kept(path) == [TALK]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("documents", [{"title": "Planets", "text": "Jupiter has most mass."}]),
        ("documents", "Jupiter has most mass."),
        ("chat_template_kwargs", {"enable_thinking": False}),
    ],
)
@pytest.mark.parametrize("layout", RECORDS)
def test_what_a_template_would_be_given_is_not_left_behind(key: str, value: Any, layout: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "data.jsonl", {**RECORDS[layout], key: value})
    ((code, message),) = refused(path)
    assert code == "unrecognized_key"
    assert f"{key} beside the conversation would be left behind" in message
    nothing = ([], None, {}, ["Jupiter is."])
    assert kept(_file(tmp_path / "same.jsonl", *({**RECORDS[layout], key: item} for item in nothing))) == [TALK] * 4


def test_text_after_the_place_of_a_completion_is_not_left_behind(tmp_path: Path) -> None:
    path = _file(tmp_path / "data.jsonl", {**RECORDS["prompt_completion"], "suffix": "return x"})
    assert [code for code, _ in refused(path)] == ["unrecognized_key"]


def test_nan_and_other_values_of_columns(tmp_path: Path) -> None:
    """NaN is what tables write for null; a day or an exact number is an id as it is written."""
    nan = float("nan")
    ids: list[pa.Array] = [
        pa.array([1.5, nan]), pa.array([datetime.date(2024, 1, 2), None]), pa.array([decimal.Decimal("7.10"), None])
    ]  # fmt: skip
    for column, expected in zip(ids, ("1.5", '"2024-01-02"', '"7.10"'), strict=True):
        labels = {"domain": pa.array([nan, 2.5]), "source": pa.array([nan, 0.5])}
        table = pa.table({"prompt": ["Q", "Q"], "completion": ["A", "A"], "id": column, **labels})
        pq.write_table(table, tmp_path / "data.parquet")
        first, second = read_rows(tmp_path / "data.parquet")
        assert isinstance(first, Row)
        assert isinstance(second, Row)
        assert (first.source_id, first.labels, first.source) == (expected, {}, None)
        assert (second.source_id, second.labels, second.source) == (None, {"domain": "2.5"}, "0.5")
