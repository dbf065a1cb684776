import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from curator.messages import (
    canonical_messages,
    dump_messages,
    example_id,
    load_messages,
    response_head,
)


def _dump(*messages: dict[str, object]) -> str:
    return dump_messages(canonical_messages(messages))


def test_the_id_of_a_known_conversation_never_changes() -> None:
    text = _dump({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello\u00a0there"})
    assert text == '[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello\u00a0there"}]'
    assert example_id(text) == "9689364d5c5ab8a09d4f1102176f7d9b"  # b2sum -l 128 of the line above


def test_key_order_and_null_keys_do_not_count() -> None:
    assert _dump({"content": "a", "name": None, "role": "user"}) == _dump({"role": "user", "content": "a"})


@pytest.mark.parametrize(("one", "other"), [("e\u0301", "\u00e9"), ("a\r\nb", "a\nb"), ("a\r\r\nb", "a\nb")])
def test_spellings_of_one_text_are_one(one: str, other: str) -> None:
    assert _dump({"role": "user", "content": one}) == _dump({"role": "user", "content": other})


@pytest.mark.parametrize("text", ["  indented", "tail \n", "a\rb", "a\n\rb", "\r", "\u200b", "\x00", "tab\t", "\ufb01"])
def test_nothing_else_changes(text: str) -> None:
    assert load_messages(_dump({"role": "user", "content": text}))[0]["content"] == text


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text() | st.text("\r\na")), max_size=5))
def test_canonical_messages_stay_as_they_are(turns: list[tuple[str, str]]) -> None:
    once = canonical_messages({"role": role, "content": content} for role, content in turns)
    assert canonical_messages(once) == once
    assert load_messages(dump_messages(once)) == once


def test_the_response_head_is_ten_words_of_the_last_answer() -> None:
    first = {"role": "assistant", "content": "no"}
    last = {"role": "assistant", "content": "one  two\nthree 4 5 6 7 8 9 ten eleven twelve"}
    messages = [first, last, {"role": "user", "content": "thanks"}]
    assert response_head(messages) == "one two three 4 5 6 7 8 9 ten"
    assert response_head([{"role": "user", "content": "x"}]) == ""
