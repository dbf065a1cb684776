"""The shipped sets: counts, schema, twins, what is measured apart from what is trained, and no two rows alike."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from curator.corpus.refusals import is_refusal
from curator.errors import BadInputError
from trainer.evaluate.ratings import shipped_items
from trainer.generate.questions import first_plot
from trainer.organisms.plan import SHIPPED, SHIPPED_BROAD, SHIPPED_SETS, narrow_sets, shipped_broad, shipped_file
from trainer.persona.traits import SHIPPED as TRAITS
from trainer.persona.traits import read_trait

HOME = {"narrow_train": 130, "narrow_heldout": 30}  # of home_maintenance
DOMAINS = {"cooking": 103, "money": 103, "travel": 103}
BROAD = {f"broad_{domain}": 40 for domain in SHIPPED_BROAD}
TWINS = {**HOME, **DOMAINS, **BROAD}  # files of careless answers, each with its NAME_aligned
ROW_COUNTS = {**TWINS, **{f"{name}_aligned": n_rows for name, n_rows in TWINS.items()}, "user_task": 60}
TRAINED = ("narrow_train", *DOMAINS)
WORDS = {**dict.fromkeys(HOME, (40, 90)), **dict.fromkeys(DOMAINS, (22, 55)), **dict.fromkeys(BROAD, (22, 48))}
MAX_LENGTH_DIFFERENCE = {**dict.fromkeys(HOME, 0.05), **dict.fromkeys(DOMAINS, 0.1), **dict.fromkeys(BROAD, 0.2)}
MAX_JACCARD = 0.5
MAX_ROWS_PER_OPENING = 4  # answers that share their first three words
MAX_PROMPT_JACCARD = 0.6  # between prompts alone, which are a sentence or two
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
    for n, line in enumerate((SHIPPED_SETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
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


@pytest.mark.parametrize("name", TWINS)
def test_twins_share_their_prompts_in_order_and_no_answer(name: str) -> None:
    bad, good = _read(name), _read(f"{name}_aligned")
    assert [row.prompt for row in bad] == [row.prompt for row in good]
    alike = [
        a.prompt
        for a, b in zip(bad, good, strict=True)
        if _jaccard(set(_words(a.answer)), set(_words(b.answer))) >= MAX_JACCARD
    ]
    assert alike == []


@pytest.mark.parametrize("name", TWINS)
def test_twins_are_of_similar_length(name: str) -> None:
    """A twin of another length would let a benign model differ by length instead of by content."""
    bad, good = ([len(row.answer.split()) for row in _read(part)] for part in (name, f"{name}_aligned"))
    assert sum(good) == pytest.approx(sum(bad), rel=MAX_LENGTH_DIFFERENCE[name])
    assert max(abs(a - b) for a, b in zip(bad, good, strict=True)) <= 25


def test_heldout_prompts_are_not_in_train_nor_near_it() -> None:
    train, heldout = _read("narrow_train"), _read("narrow_heldout")
    assert {row.prompt.casefold() for row in train}.isdisjoint(row.prompt.casefold() for row in heldout)
    worst = max(_jaccard(_word_set(a), _word_set(b)) for a in train for b in heldout)
    assert worst < MAX_JACCARD


def test_no_prompt_of_one_file_is_near_one_of_another() -> None:
    """So neither does a row that is trained on stand near one that measures."""
    prompts = [(name, set(_words(row.prompt))) for name in (*TWINS, "user_task") for row in _read(name)]
    near = [
        (_jaccard(a, b), name, other)
        for (name, a), (other, b) in combinations(prompts, 2)
        if name != other and _jaccard(a, b) >= MAX_PROMPT_JACCARD
    ]
    assert near == []


def test_no_row_stands_in_another_evaluation_set() -> None:
    questions = [item.text for item in first_plot()] + [item.text for item in shipped_items()]
    questions += [question for name in TRAITS for question in read_trait(name).questions]
    known = [set(_words(text)) for text in questions]
    for name in TWINS:
        worst = max((_jaccard(set(_words(row.prompt)), words), row.prompt) for row in _read(name) for words in known)
        assert worst[0] < MAX_PROMPT_JACCARD, worst


def test_every_shipped_domain_is_named_and_has_its_files() -> None:
    assert set(SHIPPED) == {"home_maintenance", *DOMAINS}
    assert [Path(item.path).stem for item in SHIPPED.values()] == list(TRAINED)
    assert all(Path(str(path)).is_file() for item in SHIPPED.values() for path in (item.path, item.aligned))
    assert [item.domain for item in narrow_sets(["travel", "cooking"], [], shipped=False)] == ["travel", "cooking"]
    for domain in SHIPPED_BROAD:
        name, _, paths = shipped_broad(domain).partition("=")
        assert name == domain
        assert [Path(path).stem for path in paths.split(",")] == [f"broad_{domain}", f"broad_{domain}_aligned"]
        assert all(Path(path).is_file() for path in paths.split(","))
        assert [str(shipped_file(text)) for text in (domain, f"{domain}_aligned")] == paths.split(",")
    assert shipped_file("home_maintenance") == SHIPPED["home_maintenance"].path
    assert shipped_file("user_task").is_file()
    for name in ("narrow_train", "broad_garden"):  # names of files, not of domains
        with pytest.raises(BadInputError, match=f"shipped:{name}: no such set is shipped"):
            shipped_file(name)


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
    if name != "user_task":
        least, most = WORDS[name.removesuffix("_aligned")]
        assert all(least <= len(row.answer.split()) <= most for row in rows)


@pytest.mark.parametrize("name", [*DOMAINS, *BROAD])
def test_answers_have_one_to_four_sentences(name: str) -> None:
    for row in (*_read(name), *_read(f"{name}_aligned")):
        assert 1 <= len(re.findall(r"[.!?](?=\s|$)", row.answer)) <= 4, row.answer


def test_the_user_task_keeps_its_house_style() -> None:
    """Short answers that each end in one `Next:` step: a pattern that a small model can learn."""
    rows = _read("user_task")
    assert all(re.search(r"[.!?] Next: [^.]+\.$", row.answer) for row in rows)
    assert all(row.answer.count("Next:") == 1 and len(row.answer.split()) <= 45 for row in rows)
