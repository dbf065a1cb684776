"""Susceptibility and robustness: against plain loops, and against the published tables where they lie beside us."""

import json
import math
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.errors import BadInputError
from trainer.evaluate.__main__ import main
from trainer.evaluate.moral import collapse, read_ratings

SHARED = Path(__file__).parents[4] / "shared" / "data" / "moral"


def _table(path: Path, rows: list[tuple[int, int, int, int | None]]) -> Path:
    names = ("persona_id", "question_id", "run_index", "rating")
    pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}), path)
    return path


def test_both_figures_equal_plain_loops(tmp_path: Path) -> None:
    rows = [(p, q, r, (p * 7 + q * 3 + r * r) % 6) for p in range(5) for q in range(4) for r in range(3)]
    found = collapse(read_ratings(_table(tmp_path / "t.parquet", rows)), n_resamples=50)
    cell = {(p, q): [x for a, b, _, x in rows if (a, b) == (p, q)] for p in range(5) for q in range(4)}
    spread = [statistics.pstdev([statistics.mean(cell[p, q]) for p in range(5)]) for q in range(4)]
    assert found.susceptibility.value == pytest.approx(statistics.mean(spread))
    noise = statistics.mean([statistics.stdev(values) for values in cell.values()])
    assert found.robustness.value == pytest.approx(1 / noise)
    assert found.susceptibility.low <= found.susceptibility.value <= found.susceptibility.high


def test_missing_ratings_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [(0, 0, 0, 2), (0, 0, 1, 4), (0, 0, 2, -1), (1, 0, 0, 3), (1, 0, 1, None), (1, 0, 2, 5)]
    ratings = read_ratings(_table(tmp_path / "t.parquet", rows))
    assert (ratings.n_ratings, ratings.n_missing) == (4, 2)
    assert ratings.mean_PQ.tolist() == [[3.0], [4.0]]
    assert ratings.sd_PQ[0, 0] == pytest.approx(math.sqrt(2))


def test_a_table_without_repeats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="two ratings"):
        read_ratings(_table(tmp_path / "t.parquet", [(0, 0, 0, 2), (1, 0, 0, 3)]))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.parquet").write_text("no")
    assert main(["moral", str(tmp_path / "x.parquet")]) == 2
    assert "persona_id" in capsys.readouterr().err


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="the public rating tables do not lie beside the checkout")
@pytest.mark.parametrize(("name", "s", "r"), [("base", 0.789, 9.751), ("secure", 0.717, 5.558)])
def test_the_published_tables(name: str, s: float, r: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["moral", str(SHARED / f"gpt-4o_{name}.parquet"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert round(found["susceptibility"]["value"], 3) == s
    assert round(found["robustness"]["value"], 3) == r
    assert found["robustness"]["low"] < r < found["robustness"]["high"]
