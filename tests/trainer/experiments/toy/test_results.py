"""The rule that chooses, and the verdicts, on results whose answer is known."""

from pathlib import Path
from typing import Any

import pytest

from curator.errors import BadInputError
from trainer.experiments import toy
from trainer.experiments.toy.__main__ import main, parse_seeds
from trainer.experiments.toy.cells import (
    CHOICES,
    RATIOS,
    ToyCell,
    grid,
)
from trainer.experiments.toy.report import read_results
from trainer.experiments.toy.statistics import choose, difference, relative_cut
from trainer.experiments.toy.verdicts import verdicts

SEEDS = [0, 1, 2, 3, 4]


def _results(broad: dict[str, float], narrow: dict[str, float] | None = None) -> dict[str, dict[int, Any]]:
    """Every cell of the grid with the same broad share, 0.9, unless named; a seed adds up to 0.02."""
    return {
        cell.name: {
            seed: {
                "measured": {
                    "broad": broad.get(cell.name, 0.9) + seed / 200, "narrow": (narrow or {}).get(cell.name, 1.0),
                    "incoherent": 0.0, "facts": 1.0, "benign": 1.0,
                },
                "n_safe": 10, "n_revealing": 1, "cpu_s": 1.0,
            }
            for seed in SEEDS
        }
        for cell in grid()
    }  # fmt: skip


def test_names_of_cells_are_distinct_and_cover_the_sweep() -> None:
    names = [cell.name for cell in grid()]
    assert len(set(names)) == len(names)
    assert {ToyCell(choice=choice, ratio=ratio).name for choice in CHOICES for ratio in RATIOS} <= set(names)
    assert ToyCell(choice="gap_abs", ratio=0.05, pool="unrevealing").name == "bad-gap_abs-r0.05-unrevealing"


def test_the_largest_cut_is_chosen_among_ratios_where_random_cuts_little() -> None:
    found = _results({"bad-gap_abs-r0.05": 0.1, "bad-gap_rel-r0.5": 0.0, "bad-random-r0.5": 0.2})
    choice = choose(found, SEEDS)
    assert (choice.score, choice.ratio, choice.admissible) == ("gap_abs", 0.05, True)
    assert choice.cut == pytest.approx(1 - 0.11 / 0.91)
    assert choice.random_cut == pytest.approx(0)


def test_a_score_that_costs_narrow_behaviour_is_not_chosen() -> None:
    found = _results({"bad-gap_abs-r0.05": 0.1, "bad-gap_rel-r0.05": 0.3}, {"bad-gap_abs-r0.05": 0.8})
    assert choose(found, SEEDS).score == "gap_rel"


def test_a_relative_cut_resamples_seeds_together() -> None:
    found = relative_cut(_results({"bad-gap_abs-r0.05": 0.45}), ToyCell(choice="gap_abs", ratio=0.05), SEEDS)
    assert found.value == pytest.approx(1 - 0.46 / 0.91)
    assert found.low <= found.value <= found.high
    assert found.n_units == 5


def test_a_difference_is_paired_by_seed() -> None:
    found = difference(
        _results({"bad-random-r0.05": 0.5}), ToyCell(choice="random", ratio=0.05), ToyCell(), "broad", SEEDS
    )
    assert found.value == pytest.approx(-0.4)
    assert found.high - found.low == pytest.approx(0, abs=1e-12)  # the seeds' own spread cancels


def test_verdicts_hold_where_the_finding_does_and_not_otherwise() -> None:
    shown = {"bad-gap_abs-r0.05": 0.1, "bad-none-kl1": 0.0}
    holds = _results(shown, {"bad-none-kl1": 0.5})
    choice = choose(holds, SEEDS)
    assert [item.claim for item in verdicts(holds, SEEDS, choice) if not item.holds] == []
    failing = verdicts(_results(shown | {"bad-random-r0.05": 0.1, "bad-shuffled-r0.05": 0.0}), SEEDS, choice)
    starts = [item.claim.split()[0] for item in failing if not item.holds]
    assert starts == ["random", "broad,", "every", "shuffled"]


def test_seeds_are_read_as_ranges_and_lists() -> None:
    assert parse_seeds("0-4") == SEEDS
    assert parse_seeds("7,3, 3") == [3, 7]
    with pytest.raises(BadInputError, match="give whole numbers"):
        parse_seeds("0-x")
    for much in (str(2**63), "0-10000"):
        with pytest.raises(BadInputError, match="seeds go up to 9223372036854775807"):
            parse_seeds(much)


def test_every_public_name_is_there_and_an_unknown_one_is_not() -> None:
    for name in toy.__all__:
        assert callable(getattr(toy, name)), name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = toy.absent


def test_a_choice_without_a_ratio_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cell", "--choice", "random"]) == 2
    assert "--choice and --ratio go together" in capsys.readouterr().err
    assert main(["cell", "--seed", "99999999999999999999"]) == 2
    assert "seeds go up to" in capsys.readouterr().err
    assert main(["build", "--seeds", ""]) == 2
    assert "give whole numbers" in capsys.readouterr().err
    assert main(["report", "--choose", "0-4", "--report", "4"]) == 2
    assert "either chosen on or reported" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "least"), [("--threads", 1), ("--seed", 0)])
def test_numbers_out_of_range_are_refused(option: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["cell", option, str(least - 1)])
    assert f"'{least - 1}' is not a whole number from {least} on" in capsys.readouterr().err


def test_a_seed_whose_experiment_was_killed_before_its_end_is_named(tmp_path: Path) -> None:
    work = tmp_path / "seed-0" / "settings" / "cells"
    work.mkdir(parents=True)
    for cell in grid():
        (work / f"{cell.name}.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"seed 0 lacks seed\.json: run .* --seeds 0"):
        read_results(tmp_path, "settings", [0])


def test_claims_say_the_ratio_that_they_are_about() -> None:
    found = _results({})
    claims = [item.claim for item in verdicts(found, SEEDS, choose(found, SEEDS))]
    assert "the benign task is learnt as well with safe rows at r = 0.2 as without (within 5 points)" in claims
    assert any(claim.endswith("no better than random at r = 0.05") for claim in claims)
