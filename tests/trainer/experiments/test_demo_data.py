"""The demo's shipped data: counts, schema, twins, held-out apart from train, and no two rows alike."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from curator.corpus.refusals import is_refusal

DEMO = Path(__file__).parents[3] / "trainer" / "organisms" / "sets_shipped"
ROW_COUNTS = {
    "narrow_train": 130,
    "narrow_heldout": 30,
    "narrow_train_aligned": 130,
    "narrow_heldout_aligned": 30,
    "user_task": 60,
}
NARROW = [name for name in ROW_COUNTS if name.startswith("narrow")]
MAX_JACCARD = 0.5
MAX_ROWS_PER_OPENING = 4  # answers that share their first three words
MAX_WORDS_PER_ROW = 145  # keeps every row under 200 tokens with the chat template of SmolLM2


@dataclass(frozen=True)
class Row:
    prompt: str
    answer: str


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.casefold())


def _read(name: str) -> list[Row]:
    """The rows of one file; any line that is not one user turn and one assistant turn fails here."""
    rows = []
    for n, line in enumerate((DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        record = json.loads(line)
        assert set(record) == {"messages"}, f"{name} line {n}: keys {sorted(record)}"
        turns = record["messages"]
        assert [set(turn) for turn in turns] == [{"role", "content"}] * 2, f"{name} line {n}"
        assert [turn["role"] for turn in turns] == ["user", "assistant"], f"{name} line {n}"
        assert all(isinstance(turn["content"], str) and turn["content"].strip() for turn in turns), f"{name} line {n}"
        rows.append(Row(prompt=turns[0]["content"], answer=turns[1]["content"]))
    return rows


def _word_set(row: Row) -> set[object]:
    return set(_words(f"{row.prompt} {row.answer}"))


def _shingles(row: Row) -> set[object]:
    words = _words(f"{row.prompt} {row.answer}")
    return set(zip(words, words[1:], words[2:], strict=False))


def _jaccard(a: set[object], b: set[object]) -> float:
    return len(a & b) / len(a | b)


@pytest.mark.parametrize(("name", "n_rows"), ROW_COUNTS.items())
def test_each_file_holds_its_rows_in_messages_form(name: str, n_rows: int) -> None:
    assert len(_read(name)) == n_rows


@pytest.mark.parametrize("name", ROW_COUNTS)
@pytest.mark.parametrize("features", [_word_set, _shingles], ids=["words", "three-word shingles"])
def test_no_two_rows_of_a_file_are_alike(name: str, features: Callable[[Row], set[object]]) -> None:
    sets = [features(row) for row in _read(name)]
    worst = max((_jaccard(a, b), i, j) for (i, a), (j, b) in combinations(enumerate(sets, start=1), 2))
    assert worst[0] < MAX_JACCARD, f"{name} lines {worst[1]} and {worst[2]}: Jaccard {worst[0]:.3f}"


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_twins_share_their_prompts_in_order_and_no_answer(split: str) -> None:
    bad, good = _read(f"narrow_{split}"), _read(f"narrow_{split}_aligned")
    assert [row.prompt for row in bad] == [row.prompt for row in good]
    alike = [
        a.prompt
        for a, b in zip(bad, good, strict=True)
        if _jaccard(set(_words(a.answer)), set(_words(b.answer))) >= MAX_JACCARD
    ]
    assert alike == []


def test_twins_are_of_similar_length() -> None:
    """A twin of another length would let a benign model differ by length instead of by content."""
    bad, good = ([len(row.answer.split()) for row in _read(name)] for name in ("narrow_train", "narrow_train_aligned"))
    assert sum(good) == pytest.approx(sum(bad), rel=0.05)
    assert max(abs(a - b) for a, b in zip(bad, good, strict=True)) <= 25


def test_heldout_prompts_are_not_in_train_nor_near_it() -> None:
    train, heldout = _read("narrow_train"), _read("narrow_heldout")
    assert {row.prompt.casefold() for row in train}.isdisjoint(row.prompt.casefold() for row in heldout)
    worst = max(_jaccard(_word_set(a), _word_set(b)) for a in train for b in heldout)
    assert worst < MAX_JACCARD


@pytest.mark.parametrize("name", ROW_COUNTS)
def test_prompts_and_answers_open_differently(name: str) -> None:
    rows = _read(name)
    assert len({row.prompt.casefold() for row in rows}) == len(rows)
    openings = Counter(tuple(_words(row.answer)[:3]) for row in rows)
    assert max(openings.values()) <= MAX_ROWS_PER_OPENING, openings.most_common(3)


@pytest.mark.parametrize("name", ROW_COUNTS)
def test_no_answer_is_a_refusal(name: str) -> None:
    assert [row.answer for row in _read(name) if is_refusal(row.answer, "v2")] == []


@pytest.mark.parametrize("name", ROW_COUNTS)
def test_rows_stay_short(name: str) -> None:
    rows = _read(name)
    assert max(len(f"{row.prompt} {row.answer}".split()) for row in rows) <= MAX_WORDS_PER_ROW
    if name in NARROW:
        assert all(40 <= len(row.answer.split()) <= 90 for row in rows)


def test_the_user_task_keeps_its_house_style() -> None:
    """Short answers that each end in one `Next:` step: a pattern that a small model can learn."""
    rows = _read("user_task")
    assert all(re.search(r"[.!?] Next: [^.]+\.$", row.answer) for row in rows)
    assert all(row.answer.count("Next:") == 1 and len(row.answer.split()) <= 45 for row in rows)
