"""Resumable cells: results are not made twice, nor by two processes at a time."""

from pathlib import Path

import pytest

from trainer.experiments.claims import claimed
from trainer.experiments.grid import open_cells


def test_cells_with_a_result_or_another_worker_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def result(cell: str) -> Path:
        return tmp_path / cell / "result.json"

    result("done").parent.mkdir()
    result("done").write_text("{}")
    with claimed(tmp_path / "busy" / ".result.lock"):
        turns = []
        for turn in open_cells(["done", "busy", "first", "second"], result, str.upper):
            turns.append((turn.cell, turn.number, turn.n_cells))
            if turn.cell == "first":  # another process finishes a cell meanwhile
                result("second").parent.mkdir()
                result("second").write_text("{}")
    assert turns == [("first", 2, 3)]
    assert capsys.readouterr().out == "BUSY: another process has it\n"


def test_no_cell_begins_after_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(open_cells(["a", "b"], lambda cell: tmp_path / cell, str, limit_min=0)) == []
    assert "2 cells are left" in capsys.readouterr().out
