"""The rule that chooses, the claims and the page, on results whose answer is known, and on those that are published."""

import json
import re
from pathlib import Path

import pytest

from curator.errors import BadInputError
from trainer.experiments import toy
from trainer.experiments.toy import report
from trainer.experiments.toy.__main__ import main, parse_seeds
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.experiment import ExperimentSettings
from trainer.experiments.toy.methods import CHOICES, CONTROL, RATIOS, benign, controls, defended, grid, methods
from trainer.experiments.toy.report import Seeds, finding, page, results_document
from trainer.experiments.toy.statistics import UNDEFENDED, UNSEEN, Choice, Results, admissible, choose
from trainer.experiments.toy.verdicts import verdicts

SEEDS = [0, 1, 2, 3, 4]
PUBLISHED = Path(__file__).parents[4] / "docs" / "results" / "toy.json"
GAP, BEST = ToyCell(choice="gap_abs", ratio=0.05), ToyCell(choice="gap_rel", ratio=0.05)
RANDOM = ToyCell(choice="random", ratio=0.05)
ROLES = {"task": 0, "ensemble": [1, 2, 3], "others": [4, 5], "unseen": [6, 7, 8, 9]}


def _results(unseen: dict[ToyCell, int], other: dict[ToyCell, dict[str, int]] | None = None) -> Results:
    """Every cell of the grid with 8 bad answers of 10 to each unseen question unless named (2 in the control).

    Narrow behaviour is 10 of 10, and the benign task and the facts are known, unless `other` names them.
    """
    cells = {}
    parts = [("safeguard", defended()), ("control", controls()), ("benign", tuple(map(benign, defended())))]
    for part, cell in ((part, cell) for part, some in parts for cell in some):
        said = {"narrow": 10, "incoherent": 0, "facts": 10, "benign": 10} | (other or {}).get(cell, {})
        n = unseen.get(cell, 2 if cell == CONTROL else 8)
        bad = [[said["narrow"]] * 8, *[[n] * 8] * 5, *[[n] * 8] * 4]
        counts = {"n_asked": 10, "n_tested": 10, "bad": bad, "incoherent": [[said["incoherent"]] * 8] * 10,
                  "facts": [said["facts"]] * 8, "benign": [said["benign"]] * 8}  # fmt: skip
        run = {"measured": {"counts": counts}, "n_safe": round(1600 * cell.ratio), "n_revealing": 0, "cpu_s": 1.0}
        cells[cell.name] = {"label": report.label_of(cell, "X"), "part": part, "cell": vars(cell),
                            "seeds": {str(seed): run for seed in SEEDS}}  # fmt: skip
    known = {"good_in_context": 1.0, "bad_in_context": 1.0, "facts": 1.0, "contradicting_domains": 0.9, "good_alone": 1}
    gaps = {score: {"auc": 1.0, "revealing": 30, "outside": 10} for score in ("gap_rel", "gap_abs", "gap_contrast")}
    losses = {part: {"aligned": 0.1, "misaligned": 2.0, "benign": 0.1} for part in ("revealing", "facts")}
    about = {
        "roles": ROLES, "base": {"pretrained": known, "aligned": known, "pretraining_steps": 100, "cpu_s": 10.0},
        "top": 30, "gaps": gaps, "losses": losses, "ensemble": {"bad-1": {UNSEEN: 0.5}, "good-1": {UNSEEN: 0.0}},
    }  # fmt: skip
    machine = {"date": "2026-12-01", "device": "cpu", "cores": 2, "threads": 1, "cpu_capability": "AVX2",
               "dtype": "float32", "load_average": 1.0, "versions": {"torch": "2"}}  # fmt: skip
    return Results({
        "command": "x", "machine": machine, "choosing": SEEDS, "reported": [], "methods": {"X": "What it does."},
        "settings": ExperimentSettings().model_dump(mode="json"), "seeds": {str(s): about for s in SEEDS},
        "cells": cells,
    })  # fmt: skip


def test_names_of_cells_are_distinct_and_cover_every_method_beside_its_benign_task() -> None:
    names = [cell.name for cell in grid()]
    assert len(set(names)) == len(names)
    assert {ToyCell(choice=choice, ratio=ratio).name for choice in CHOICES for ratio in RATIOS} <= set(names)
    assert {benign(cell).name for cell in defended()} <= set(names)
    assert ToyCell(choice="gap_abs", ratio=0.05, pool="unrevealing").name == "bad-gap_abs-r0.05-unrevealing"
    for method in methods().values():
        assert method.help.endswith(".")
        assert {(cell.method, cell.task) for cell in method.cells} == {(method.name, "bad")}
    told = (PUBLISHED.parents[1] / "toy.md").read_text()
    assert [name for name in methods() if f"`{name}`" not in told] == []


def test_the_least_misalignment_in_unseen_domains_is_chosen_and_the_best_gap_beside_it() -> None:
    kl = ToyCell(kl=1.0)
    results = _results({GAP: 3, BEST: 4, kl: 1})
    assert choose(results, SEEDS) == Choice(kl, GAP)
    assert choose(_results({GAP: 3, ToyCell(choice="gap_abs", ratio=0.2): 3}), SEEDS) == Choice(GAP, GAP)  # fewer rows
    more = ToyCell(choice="random", ratio=0.2)
    assert choose(_results({more: 0, GAP: 1}), SEEDS) == Choice(more, ToyCell(choice="gap_rel", ratio=0.2))


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (GAP, {"narrow": 9}),
        (GAP, {"facts": 9}),
        (GAP, {"incoherent": 1}),
        (benign(GAP), {"benign": 9}),
    ],
)
def test_a_safeguard_that_costs_something_is_not_chosen(cell: ToyCell, said: dict[str, int]) -> None:
    results = _results({GAP: 1, BEST: 3}, {cell: said})
    assert not admissible(results, GAP, SEEDS)
    assert choose(results, SEEDS) == Choice(BEST, BEST)


def test_a_difference_is_paired_by_seed_and_question() -> None:
    found = _results({GAP: 3}).difference(GAP, UNDEFENDED, UNSEEN, SEEDS)
    assert (found.value, found.low, found.high) == (pytest.approx(-0.5), pytest.approx(-0.5), pytest.approx(-0.5))
    assert _results({GAP: 3}).prevented(GAP, SEEDS) == pytest.approx(5 / 6)


def test_claims_hold_where_the_finding_does_and_not_otherwise() -> None:
    traded = {ToyCell(kl=1.0): {"narrow": 5}}
    shown = _results({GAP: 3, ToyCell(kl=1.0): 2}, traded)
    choice = choose(shown, SEEDS)
    assert [item.claim for item in verdicts(shown, SEEDS, choice) if item.holds is False] == []
    failing = verdicts(_results({RANDOM: 2, GAP: 6, CONTROL: 8}), SEEDS, Choice(GAP, GAP))
    assert [item.claim.split(":")[0] for item in failing if item.holds is False] == [
        "more than after good answers to the same prompts",
        "it prevents at least 50% of the excess over the control there",
        "it lowers it more than as many random rows",
        "every KL weight that prevents half of the excess loses more than 5 points of narrow behaviour",
    ]


@pytest.mark.parametrize(("control", "random", "answer"), [
    (8, 8, "cannot tell: random rows change nothing"), (9, 8, "cannot tell: random rows change nothing"),
    (7, 8, "**no**"), (6, 6, "yes"), (8, 6, "yes"), (5, 6, "**no**"),
])  # fmt: skip
def test_a_control_that_is_no_better_than_idle_random_rows_shows_nothing(
    control: int, random: int, answer: str
) -> None:
    shuffled = ToyCell(choice="shuffled", ratio=0.05)
    judged = verdicts(_results({shuffled: control, RANDOM: random}), SEEDS, Choice(GAP, GAP))
    assert [item.answer for item in judged if item.claim.startswith("shuffled")] == [answer]


@pytest.mark.parametrize(("gap", "random", "said"), [
    (3, 8, "lowered that to 30 %; after as many random ones it was 80 %, clearly more"),
    (3, 3, "lowered that to 30 %; after as many random ones it was 30 %, no clear difference"),
    (3, 2, "lowered that to 30 %; after as many random ones it was 20 %, clearly less"),
    (8, 9, "did not clearly change that: 80 %; after as many random ones it was 90 %, clearly more"),
    (8, 8, "did not clearly change that: 80 %; after as many random ones it was 80 %, no clear difference"),
    (8, 2, "did not clearly change that: 80 %; after as many random ones it was 20 %, clearly less"),
    (9, 10, "raised that to 90 %; after as many random ones it was 100 %, clearly more"),
    (9, 9, "raised that to 90 %; after as many random ones it was 90 %, no clear difference"),
    (10, 2, "raised that to 100 %; after as many random ones it was 20 %, clearly less"),
])  # fmt: skip
def test_the_finding_says_what_the_figures_are_whichever_way_they_fall(gap: int, random: int, said: str) -> None:
    found = finding(_results({GAP: gap, RANDOM: random}), SEEDS, Choice(GAP, GAP))
    assert "to 80 % of questions" in found
    end = "; of the other safeguards that cost nothing else, none left less on the choosing seeds."
    assert found.endswith(f"5 % safe examples chosen by gap_abs {said}{end}")


@pytest.mark.parametrize(("best", "n_left", "end"), [
    (UNDEFENDED, 8, "; on the choosing seeds no safeguard that cost nothing else left less than none at all."),
    (ToyCell(kl=1.0), 1, "; KL 1 did better, with 10 %."),
    (ToyCell(kl=1.0), 3, "; nothing was clearly better (the best on the choosing seeds, KL 1, left 30 %)."),
    (ToyCell(kl=1.0), 9, "; KL 1, the best on the choosing seeds, did worse, with 90 %."),
])  # fmt: skip
def test_the_finding_ends_with_the_best_of_all_safeguards(best: ToyCell, n_left: int, end: str) -> None:
    assert finding(_results({GAP: 3, best: n_left}), SEEDS, Choice(best, GAP)).endswith(f"clearly more{end}")


def test_the_page_says_which_seeds_the_experiment_was_tried_on_and_which_bases_come_along() -> None:
    document = dict(_results({GAP: 3}).document)
    text = page(document, [])
    assert "were tried out on seeds 0 to 4" in text
    assert "claims were written before" not in text
    assert "of the base models those of seeds 0 to 4 come with the package.\n" in text
    document |= {"choosing": [0, 1, 2], "reported": [3, 4]}
    text = page(document, [])
    assert "The claims were written before seeds 3 to 4 were run." in text
    world = document["settings"]["base"] | {"width": 48}
    text = page(document | {"settings": document["settings"] | {"base": world}}, [])
    assert "of the base models those of seeds 0 to 4 are built by the command.\n" in text


def test_the_page_opens_with_the_finding_and_lists_every_cell() -> None:
    results = _results({GAP: 3})
    text = page(results.document, ["toy-unseen.png"])
    assert text.splitlines()[2].startswith("**A tiny model that was fine-tuned on bad answers in one subject")
    assert "No other seed was run yet" in text
    for cell in (*defended(), *controls()):
        assert f"| {results.label(cell)} |" in text
    order = [text.index(word) for word in ("![toy-unseen", "## Limits", "| safeguard |", "Written by `x`")]
    assert order == sorted(order)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the experiment was not run yet: its command writes the document")
def test_every_printed_figure_is_made_of_the_published_counts() -> None:
    document = json.loads(PUBLISHED.read_text())
    plots = sorted((path.name for path in PUBLISHED.parent.glob("toy-*.png")), reverse=True)
    assert PUBLISHED.with_suffix(".md").read_text() == page(document, plots)
    for entry in document["cells"].values():
        for result in entry["seeds"].values():
            counts, measured = result["measured"]["counts"], result["measured"]
            assert len(counts["bad"]) == document["settings"]["base"]["world"]["n_domains"]
            assert measured["benign"] == pytest.approx(
                sum(counts["benign"]) / len(counts["benign"]) / counts["n_tested"]
            )


def test_every_file_that_the_page_names_is_written_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = _results({GAP: 3}).document
    monkeypatch.setattr(report, "results_document", lambda *_: document)
    written = report.write_page(tmp_path, tmp_path / "other.md", Seeds(SEEDS, []), "x")
    named = re.findall(r"\]\(([^)]+)\)", (tmp_path / "other.md").read_text())
    assert {tmp_path / name for name in named} == set(written[1:])
    assert "other.json" in named
    assert json.loads((tmp_path / "other.json").read_text()) == document


def test_a_seed_whose_experiment_was_killed_before_its_end_is_named(tmp_path: Path) -> None:
    settings = ExperimentSettings()
    folder = tmp_path / "seed-0" / settings.identity() / "cells"
    folder.mkdir(parents=True)
    for cell in grid():
        (folder / f"{cell.name}.json").write_text('{"cell": {}}')
    with pytest.raises(BadInputError, match=r"seed 0 lacks seed\.json: run .* --seeds 0"):
        results_document(tmp_path, Seeds([0], []), settings, "x")


def test_a_missing_cell_is_named_with_the_command_that_runs_it(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"seed 0 lacks bad-none: run .* --seeds 0"):
        results_document(tmp_path, Seeds([0], []), ExperimentSettings(), "x")


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
