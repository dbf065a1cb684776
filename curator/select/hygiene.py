"""What hygiene checks of a conversation, as columns of a pool's frame.

Columns: `template_marker`, `no_question` and `empty` say whether the row fails the check of that name, `repetition`
is the largest `curator.corpus.text.repetition` of its answers, which the check `looped` compares with a bound.

`hygiene_of` is the rule, by the functions of `curator.corpus.text`. `hygiene_columns` gives the same for many rows: it
asks those functions only for turns in which Polars finds something that they could object to.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from curator.corpus.text import (
    N_HEAD_CHARS,
    NGRAM,
    content_text,
    has_empty_turn,
    has_question,
    repetition,
    shows_nothing,
    template_marker,
)
from curator.messages import Message, load_messages

HYGIENE = {"template_marker": pl.Boolean, "no_question": pl.Boolean, "empty": pl.Boolean, "repetition": pl.Float64}
_BATCH_CHARS = 1 << 24  # of JSON, whose turns and words are held at once

# Without one of these no text holds a marker (`template_marker`). Python's white space has four more characters.
_MAYBE_MARKER = (
    r"(?m)<\||<｜|INST\]|SYS>>|_of_turn>|_of_text>|</s>"
    r"|^###[\s\x1c-\x1f]*(?:Instruction|Response|Human|Assistant)|^(?:Human|Assistant|USER|ASSISTANT)"
)
_SHOWS_ASCII = "[!-~]"
_ODD_SPACE = r"[\s\x1c-\x1f&&[^ ]]"
_LONG_WORD = r"\S{60}"  # holds every run of one character that counts
_PLAIN_HEAD = r"^[\x00-\x7F‘’“”–—…•→×€£©®™°\u00a0]*$"  # what is no letter or digit here is none in Python either
_NO_LETTER = r"[\W_]+"
_LONGEST_PIECE, _START = 40, 4  # letters of the longest piece, and of its start, which two more pieces repeat
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hygiene_of(messages: Sequence[Message]) -> tuple[bool, bool, bool, float]:
    """One conversation's values, in the order of `HYGIENE`."""
    texts = [(message["role"], content_text(message.get("content"))) for message in messages]
    return (
        any(template_marker(text) is not None for _, text in texts),
        not has_question(messages),
        has_empty_turn(messages),
        max((repetition(text) for role, text in texts if role == "assistant"), default=0.0),
    )


def hygiene_columns(texts: Sequence[str]) -> pl.DataFrame:
    """The columns of conversations given as canonical JSON, in their order."""
    pieces, start, n_chars = [pl.DataFrame(schema=HYGIENE)], 0, 0
    for end, text in enumerate(texts, start=1):
        n_chars += len(text)
        if n_chars > _BATCH_CHARS or end == len(texts):
            pieces.append(_columns(texts[start:end]))
            start, n_chars = end, 0
    return pl.concat(pieces)


def _columns(texts: Sequence[str]) -> pl.DataFrame:
    turns = _turns(texts)
    role, text = pl.col("role"), pl.col("text")
    is_answer = role == "assistant"
    found = turns.with_columns(
        marker=text.str.contains(_MAYBE_MARKER), hidden=~text.str.contains(_SHOWS_ASCII), repetition=pl.lit(0.0)
    )
    found = _decided(found, "marker", lambda text: template_marker(text) is not None)
    found = _decided(found, "hidden", shows_nothing)
    answers = turns.with_row_index("turn").filter(is_answer)
    suspects = answers.filter(_may_repeat(answers["text"]))
    repetitions = np.zeros(turns.height)
    repetitions[suspects["turn"].to_numpy()] = [repetition(item) for item in suspects["text"].to_list()]
    by_row = (
        found.with_columns(repetition=pl.Series(repetitions))
        .group_by("row")
        .agg(
            template_marker=pl.col("marker").any(),
            no_question=~((role == "user") & ~pl.col("hidden")).any(),
            empty=(role.is_in(["user", "assistant"]) & pl.col("hidden") & ~pl.col("calls")).any(),
            repetition=pl.col("repetition").max(),
        )
    )
    rows = pl.DataFrame({"row": pl.int_range(len(texts), dtype=pl.UInt32, eager=True)})
    # A conversation without turns has no question, and nothing else.
    return rows.join(by_row, on="row", how="left", maintain_order="left").select(
        *(pl.col(name).fill_null(name == "no_question") for name in ("template_marker", "no_question", "empty")),
        pl.col("repetition").fill_null(0.0),
    )


def _turns(texts: Sequence[str]) -> pl.DataFrame:
    """All turns: number of the conversation, role, text, and whether a tool is called."""
    columns: dict[str, list[Any]] = {"row": [], "role": [], "text": [], "calls": []}
    for row, text in enumerate(texts):
        for message in load_messages(text):
            columns["row"].append(row)
            columns["role"].append(message["role"])
            columns["text"].append(content_text(message.get("content")))
            columns["calls"].append(bool(message.get("tool_calls")))
    schema = {"row": pl.UInt32, "role": pl.String, "text": pl.String, "calls": pl.Boolean}
    return pl.DataFrame(columns, schema=schema)


def _decided(turns: pl.DataFrame, name: str, rule: Callable[[str], bool]) -> pl.DataFrame:
    """The mask of this name with the rule's word on each of its turns."""
    mask = turns[name].to_numpy().copy()
    mask[mask] = [rule(text) for text in turns["text"].filter(turns[name]).to_list()]
    return turns.with_columns(pl.Series(name, mask))


def _may_repeat(answers: pl.Series) -> pl.Series:
    """Which answers could have a `repetition` above 0: a mask without a miss."""
    text, head = pl.col("text"), pl.col("head")
    letters = head.str.replace_all(_NO_LETTER, "").str.to_lowercase()
    table = pl.DataFrame({"text": answers, "ngram": _repeats_ngram(answers)})
    table = table.with_columns(head=text.str.slice(0, N_HEAD_CHARS)).with_columns(letters=letters)
    # Where the whole is one piece three times, its first letters come again where the second piece begins.
    again = pl.col("letters").str.slice(2, _LONGEST_PIECE + _START - 2)
    piece = again.str.contains(pl.col("letters").str.slice(0, _START), literal=True)
    maybe = pl.col("ngram") | text.str.contains(_LONG_WORD) | ~head.str.contains(_PLAIN_HEAD) | piece
    return table.select(maybe=maybe).to_series()


def _repeats_ngram(answers: pl.Series) -> pl.Series:
    """Which answers hold a word n-gram twice; very rarely one that only hashes alike."""
    words = pl.DataFrame({"answer": pl.int_range(len(answers), dtype=pl.UInt32, eager=True), "word": answers})
    words = words.with_columns(pl.col("word").str.replace_all(_ODD_SPACE, " ").str.split(" ")).explode("word")
    words = words.filter(pl.col("word") != "").select("answer", hash=pl.col("word").hash())
    answer, hashes = words["answer"].to_numpy(), words["hash"].to_numpy()
    found = np.zeros(len(answers), dtype=np.bool_)
    n = len(words) - NGRAM + 1
    if n < 1:
        return pl.Series(found)
    keys = _ngram_hashes(answer, hashes, n)
    whole = answer[:n] == answer[NGRAM - 1 :]
    grams = pl.DataFrame({"answer": answer[:n][whole], "key": keys[whole]})
    counts = grams.group_by("answer").agg(repeats=pl.col("key").n_unique() < pl.len())
    found[counts.filter("repeats")["answer"].to_numpy()] = True
    return pl.Series(found)


def _ngram_hashes(answer: npt.NDArray[np.uint32], hashes: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    keys = hashes[:n].copy()
    for place in range(1, NGRAM):
        keys *= _GOLDEN
        keys ^= keys >> np.uint64(29)
        keys += hashes[place : place + n]
    return keys
