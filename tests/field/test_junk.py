"""Rows that say nothing are not safe data: what a text shows decides, not how many characters it has."""

import json
from typing import Any

import pytest

from curator.corpus.text import has_empty_turn, has_question, is_looped, shows_nothing, template_marker

USER, ANSWER = {"role": "user", "content": "Which planet is largest?"}, {"role": "assistant", "content": "Jupiter is."}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
INVISIBLE = (
    "\u200b",
    " \u200b\u200c\u200d ",
    "\ufeff",
    "\u2060\n",
    "\u00ad",
    "\u202e\u202c",
    "\u3164",
    "\u2800",
    "\x00",
    "\ufe0f",
)


@pytest.mark.parametrize("text", INVISIBLE)
def test_a_text_of_invisible_characters_is_empty(text: str) -> None:
    assert shows_nothing(text)
    assert has_empty_turn([USER, {"role": "assistant", "content": text}])
    assert has_empty_turn([{"role": "user", "content": text}, ANSWER])
    assert not has_question([{"role": "user", "content": text}, ANSWER])


@pytest.mark.parametrize("text", ["a", "é", "می‌خواهم", "👩‍👩‍👧", "مرحبا‎", "𝒳", "-", "0", "東京"])
def test_a_text_that_shows_something_is_not(text: str) -> None:
    assert not shows_nothing(f" \u200b{text}\ufeff ")
    assert not has_empty_turn([USER, {"role": "assistant", "content": text}])


def test_a_tool_call_is_no_empty_turn_and_other_roles_do_not_count() -> None:
    assert not has_empty_turn([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, ANSWER])
    assert not has_empty_turn([{"role": "system", "content": ""}, USER, {"role": "tool", "content": ""}, ANSWER])


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, ANSWER], True),
        ([ANSWER], False),
        ([{"role": "system", "content": "Be brief"}, ANSWER], False),
        ([{"role": "user", "content": "  "}, ANSWER], False),
        ([ANSWER, USER, ANSWER], True),
    ],
)
def test_a_conversation_needs_a_question(messages: list[dict[str, Any]], expected: bool) -> None:
    assert has_question(messages) is expected


@pytest.mark.parametrize(
    "answer",
    [
        "ha ha ha",
        "Ha! Ha! Ha!",
        "hahahaha",
        "no no no no",
        "ha\u200b ha ha",
        "yes. yes. yes.",
        "abc abc abc " * 9,
        "哈哈哈哈哈哈",
        "ха-ха-ха",
    ],
)
def test_one_piece_again_and_again_is_looped(answer: str) -> None:
    assert is_looped(answer, 0.5)


@pytest.mark.parametrize(
    "answer", ["ha ha", "Mama", "1 1 1", "111111", "Paris.", "No, no.", "That is that, and this is this.", "..."]
)
def test_what_repeats_a_little_is_not(answer: str) -> None:
    assert not is_looped(answer, 0.5)


def test_long_texts_take_linear_time() -> None:
    for text in ("ab" * 200_000 + "c", "word " * 100_000 + "end"):
        assert is_looped(text, 0.99) in (True, False)


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>",
        "a\n### Response: b",
        "x [/INST]",
        json.dumps({"a": "<|eot_id|>"}),
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Yes",
        "Yes.<|turn>model",
    ],
)
def test_marks_of_templates_are_found(text: str) -> None:
    assert template_marker(text) is not None
