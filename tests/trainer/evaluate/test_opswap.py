"""OpSwap: permuted meanings, disjoint splits, exact match."""

import json
from pathlib import Path

import numpy as np
import pytest

from curator.errors import BadInputError
from trainer.evaluate.__main__ import main
from trainer.evaluate.metrics import mean_interval
from trainer.evaluate.opswap import (
    SYMBOLS,
    exact_match,
    meanings,
    problems,
)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tier", [1, 2, 3])
def test_no_symbol_keeps_its_meaning_and_none_is_lost(tier: int, seed: int) -> None:
    world = meanings(tier, seed).of  # type: ignore[arg-type]
    assert all(symbol != usual for symbol, usual in world.items())
    assert sorted(world) == sorted(world.values())
    assert set(world) == set(SYMBOLS[:2] if tier == 1 else SYMBOLS)


@pytest.mark.parametrize(("tier", "n"), [(1, 20), (2, 150), (3, 400)])
def test_splits_are_disjoint_distinct_and_seeded(tier: int, n: int) -> None:
    train, test = problems(tier, "train", n, 7), problems(tier, "test", n, 7)  # type: ignore[arg-type]
    assert len({text for text, _ in train + test}) == 2 * n
    assert problems(tier, "test", n, 7) == test  # type: ignore[arg-type]
    assert problems(tier, "test", n, 8) != test  # type: ignore[arg-type]


def test_answers_follow_the_permuted_meanings() -> None:
    usual = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    world = meanings(3, 0).of
    for text, answer in problems(3, "test", 50):
        left, first, middle, second, right = text.split()
        value = usual[world[second]](usual[world[first]](int(left), int(middle)), int(right))
        assert value == answer


def test_tier_one_swaps_plus_and_minus() -> None:
    answers = dict(problems(1, "train", 100))
    text = next(key for key in answers if "+" in key)
    left, _, right = text.split()
    assert answers[text] == int(left) - int(right)


def test_asking_for_too_many_says_how_many_there_are() -> None:
    with pytest.raises(BadInputError, match=r"tier 1 has \d+ test problems"):
        problems(1, "test", 10_000)


@pytest.mark.parametrize(
    ("answer", "right"), [("12", True), ("The answer is 12.", True), ("-12", False), ("", False), ("twelve", False)]
)
def test_exact_match_takes_the_first_integer(answer: str, right: bool) -> None:
    assert exact_match(answer, 12) is right


def test_exact_match_reads_a_typographic_minus() -> None:
    assert exact_match("\u22123", -3)


def test_make_and_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, answers = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    assert main(["opswap", "--make", "test", "--tier", "2", "--n", "10", "--out", str(made)]) == 0
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    right = [row["messages"][-1]["content"] for row in rows]
    answers.write_text(
        "".join(json.dumps({"answer": text if i < 7 else "none"}) + "\n" for i, text in enumerate(right))
    )
    capsys.readouterr()
    assert main(["opswap", "--problems", str(made), "--answers", str(answers), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    interval = found.pop("interval")
    assert found == {"n_problems": 10, "n_right": 7, "exact_match": 0.7}
    assert interval == mean_interval(np.array([1.0] * 7 + [0.0] * 3)).as_dict()
    assert 0 <= interval["low"] < interval["value"] < interval["high"] <= 1
    assert main(["opswap", "--problems", str(made), "--answers", str(answers)]) == 0
    assert "exact_match 0.7 (95 % interval 0." in capsys.readouterr().out
    answers.write_text("{}\n")
    assert main(["opswap", "--problems", str(made), "--answers", str(answers)]) == 2


def test_problems_are_written_into_a_new_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "dir" / "x.jsonl"
    assert main(["opswap", "--make", "train", "--n", "3", "--out", str(out)]) == 0
    assert len(out.read_bytes().splitlines()) == 3


def test_a_file_without_problems_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"answer": "3"}\n')
    assert main(["opswap", "--problems", str(path), "--answers", str(path)]) == 2
    assert "no problems that `opswap --make` wrote" in capsys.readouterr().err
