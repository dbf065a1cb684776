"""Hygiene as columns: what Polars looks for first misses nothing that the rule in Python finds."""

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.messages import dump_messages
from curator.mix.resolve import resolve
from curator.select import hygiene
from curator.select.hygiene import HYGIENE, hygiene_columns, hygiene_of
from tests.field.test_junk import INVISIBLE
from tests.mix_stores import recipe, scored_store

PIECES = [
    "ha ", "Ha\u200bha", "ΟΔΟΣ ", "ß", "é́", "no², ", "東京", "मि", "a", "\x1c", "\x1f", "\x85", "\u2003", "\n", "\t",
    " ", "\\", '"', "<|im_end|>", "<｜User｜>", "[/INST]", "<</SYS>>", "<end_of_turn>", "<begin_of_text>", "</s>",
    "</s>\n", "\n###\x1cResponse\x1f:", "### Instruction:", "Human:", "\nASSISTANT :", "Human", "###", "<|",
    "one two three four five ", "one two three four six ", "The quick brown fox jumps over the lazy dog. ", "—", "‘’",
    "\u00a0", "-", "x", "🙂", "１２", "½", *INVISIBLE,
]  # fmt: skip
TEXTS = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([1, 1, 1, 2, 3, 7, 60])), max_size=8).map(
    lambda found: "".join(piece * n for piece, n in found)
) | st.text(max_size=30)
CONTENTS = (
    TEXTS
    | st.none()
    | st.lists(
        st.builds(lambda text: {"type": "text", "text": text}, TEXTS)
        | st.just({"type": "image_url", "image_url": "x"}),
        max_size=3,
    )
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"text": "<|im_end|>"}}}
TURNS = st.builds(
    lambda role, content, calls: {
        "role": role,
        **({} if content is None else {"content": content}),
        **({"tool_calls": [CALL]} if calls else {}),
    },
    st.sampled_from(["user", "assistant", "assistant", "system", "tool"]),
    CONTENTS,
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(TURNS, max_size=5), max_size=6), st.sampled_from([1, 100, 1 << 24]))
def test_the_columns_are_the_rule_of_every_row(conversations: list[list[dict[str, Any]]], batch_chars: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hygiene, "_BATCH_CHARS", batch_chars)
        found = hygiene_columns([dump_messages(item) for item in conversations])
    assert found.schema == pl.Schema(HYGIENE)
    assert found.rows() == [hygiene_of(item) for item in conversations]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=12))
def test_no_answer_that_repeats_itself_is_passed_over(answers: list[str]) -> None:
    rows = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}] for answer in answers]
    assert hygiene_columns([dump_messages(row) for row in rows]).rows() == [hygiene_of(row) for row in rows]


@pytest.mark.parametrize(
    ("answer", "repetition"),
    [
        ("The answer is forty two.", 0.0),
        ("ha ha ha", math.inf),
        ("ha² ha² ha²", math.inf),
        ("東京東京東京", math.inf),
        ("Well " + "!" * 60, math.inf),
        ("Well " + "-" * 60, 0.0),
        (" ".join(map(str, range(24))), 0.0),
        (" ".join(map(str, [*range(20), 3, 4, 5, 6, 7])), 1 / 21),
        ("\x1c".join(map(str, [*range(20), 3, 4, 5, 6, 7])), 1 / 21),
        ("\u2028".join(map(str, [*range(20), 3, 4, 5, 6, 7])), 1 / 21),
    ],
)
def test_how_far_an_answer_repeats_itself(answer: str, repetition: float) -> None:
    row = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    assert hygiene_columns([dump_messages(row)])["repetition"].to_list() == [pytest.approx(repetition)]
    assert hygiene_of(row)[3] == pytest.approx(repetition)


def test_a_pool_has_the_columns(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    table = resolve(store, recipe(rows=1))[1][0].table
    found = table.columns("text_place", *HYGIENE)
    texts = store.read_table("corpora/chats/part-0.parquet", ["messages"])["messages"].to_pylist()
    expected = hygiene_columns(texts).with_row_index("text_place")
    assert found.sort("text_place").drop("text_place").equals(expected.drop("text_place"))
