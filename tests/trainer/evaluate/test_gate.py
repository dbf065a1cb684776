"""`--fail-if`: what a condition is, when it holds, and what cannot be judged."""

import pytest

from curator.errors import BadInputError
from trainer.evaluate.__main__ import main
from trainer.evaluate.gate import (
    FAILED_GATE,
    Condition,
    exit_code,
    parse_gates,
)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [("x > 0.2", 0.2, False), ("x>=0.2", 0.2, True), (" x < -1e-3 ", -0.01, True), ("a.b <= 5", 6.0, False)],
)
def test_conditions_compare(text: str, value: float, holds: bool) -> None:
    found = Condition.parse(text)
    assert found.holds({found.figure: value}) is holds


@pytest.mark.parametrize("text", ["x", "x = 1", "x > y", "> 1", "x > nan", "x > 1 and y > 2"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="not a condition"):
        Condition.parse(text)


def test_a_failed_gate_has_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    gates = parse_gates(["broad_shift > 0.2", "perplexity_ratio > 1.1"])
    assert exit_code(gates, {"broad_shift": 0.1, "perplexity_ratio": 1.0}) == 0
    assert exit_code(gates, {"broad_shift": 0.3, "perplexity_ratio": 1.0}) == FAILED_GATE == 3
    assert capsys.readouterr().err == "gate failed: broad_shift > 0.2 (broad_shift is 0.3)\n"


@pytest.mark.parametrize("figures", [{}, {"broad_shift": None}, {"broad_shift": float("nan")}])
def test_a_figure_that_is_not_there_does_not_pass(figures: dict[str, float | None]) -> None:
    with pytest.raises(BadInputError, match="broad_shift"):
        exit_code(parse_gates(["broad_shift > 0.2"]), figures)


@pytest.mark.parametrize(
    "arguments",
    [
        ["moral", "absent.parquet"], ["opswap", "--problems", "absent.jsonl", "--answers", "absent.jsonl"],
        ["pairs", "--model", "absent", "--truthfulqa", "absent.csv"],
    ],
)  # fmt: skip
def test_a_misspelt_figure_is_said_before_anything_is_read(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--fail-if", "rubustness > 1"]) == 2
    assert "names 'rubustness'; this evaluation has" in capsys.readouterr().err
