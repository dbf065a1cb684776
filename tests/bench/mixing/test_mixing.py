"""The mixing benchmark, small: every figure is there, and what is ours gives what the peers give."""

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import main
from tests.bench.mixing.command import command_of
from tests.bench.mixing.page import page
from tests.bench.mixing.request import WORK, MixBenchRequest

SMALL = [
    "--repeats", "1", "--index-rows", "1000", "--without-replacement-rows", "500", "1000", "--choice-rows", "20000",
    "--pool-rows", "2000", "--user-rows", "200", "--check-rows", "200",
]  # fmt: skip


@pytest.mark.slow
def test_a_small_run_gives_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "docs" / "mixing.md"
    assert main(["mixing", *SMALL, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    figures = document["figures"]
    assert len(figures) == 13
    assert all(figure["ratio"] > 0 and figure["seconds"]["ours"]["median"] > 0 for figure in figures)
    near = figures[-1]
    assert near["planted"] == 2
    assert near["found"]["ours"] == 2
    text = out.read_text()
    assert all(figure["work"] in text for figure in figures)
    assert str(tmp_path) not in text
    assert "python -m tests.bench mixing --repeats 1 --index-rows 1000" in text


def test_the_page_says_what_was_not_reached() -> None:
    seconds = {"ours": {"median": 0.002, "rounds": [0.002]}, "peer": {"median": 0.001, "rounds": [0.001]}}
    figure = {"work": "work", "peer": "someone", "reach": 4.0, "ratio": 0.5, "seconds": seconds}
    machine = {
        "date": "2026-01-02", "processor": "P", "cores": 2, "memory_gib": 1.0, "python": "3.11", "versions": {},
        "load_average_before": 0.1, "load_average": 0.2,
    }  # fmt: skip
    request = {"work": ["mix", "top"]}
    document = {"machine": machine, "request": request, "figures": [{**figure, "piece": "mix"}]}
    text = page(document, "python -m tests.bench mixing")
    assert "\nThe run was stopped before: top.\n\n## Command\n" in text
    assert "| work | someone | 0.50 | >= 4 (not reached) | 2.0 | peer 1.0 |" in text


def test_the_command_names_what_differs_from_the_defaults() -> None:
    assert command_of(MixBenchRequest()) == "python -m tests.bench mixing"
    request = MixBenchRequest(work=("mix", "top"), pool_rows=5_000)
    assert command_of(request) == "python -m tests.bench mixing --work mix top --pool-rows 5000"
    request = MixBenchRequest(repeats_of={"interleave": 1, "top": 9})
    assert command_of(request) == "python -m tests.bench mixing --repeats-of interleave=1 top=9"


def test_each_piece_has_its_own_turns() -> None:
    request = MixBenchRequest(repeats=5, repeats_of={"top": 9})
    assert [request.turns(piece) for piece in ("top", "mix")] == [9, 5]
    assert [request.turns_without_replacement(n_rows) for n_rows in (200_000, 200_001)] == [5, 1]
    asked = MixBenchRequest(repeats_of={"without_replacement": 2})
    assert asked.turns_without_replacement(2_000_000) == 2


@pytest.mark.parametrize(("option", "match"), [("--repeats", "--repeats 0"), ("--pool-rows", "--pool-rows 0")])
def test_sizes_out_of_range_are_refused(capsys: pytest.CaptureFixture[str], option: str, match: str) -> None:
    assert main(["mixing", option, "0"]) == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("turns", "match"),
    [
        ("top", "'top' is not a piece"),
        ("top=0", "greater than or equal to 1"),
        ("tip=2", "--repeats-of tip: Input should be"),
    ],
)
def test_turns_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str], turns: str, match: str) -> None:
    try:
        code: object = main(["mixing", "--repeats-of", turns])
    except SystemExit as refused:  # argparse's own way
        code = refused.code
    assert code == 2
    assert match in capsys.readouterr().err


def test_every_piece_of_work_can_be_asked_for() -> None:
    assert MixBenchRequest().work == WORK
