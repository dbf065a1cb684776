"""examples/notebook.ipynb runs from top to bottom on a small scored store, and its ten answers are right."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.example_store import N_EXAMPLES, write_example

NOTEBOOK = json.loads((Path(__file__).parents[1] / "examples" / "notebook.ipynb").read_text())
QUESTIONS = 10


def run_cells() -> tuple[dict[str, Any], list[Any]]:
    """Run the code cells in one namespace, as a kernel does: the names, and what each cell's last expression gives."""
    names: dict[str, Any] = {}
    shown = []
    for number, cell in enumerate(cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    return names, shown


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    root = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALLAST_STORE", str(write_example(root)))
        return run_cells()


def test_it_asks_ten_questions_and_keeps_no_output() -> None:
    headings = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown"]
    assert [text.split(".")[0] for text in headings[1:]] == [f"## {n}" for n in range(1, QUESTIONS + 1)]
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_every_table_that_it_shows_has_rows(ran: tuple[dict[str, Any], list[Any]]) -> None:
    tables = [item for item in ran[1] if isinstance(item, pl.DataFrame)]
    assert len(tables) >= 7
    assert all(table.height for table in tables)


def test_the_answers_are_those_of_the_store(ran: tuple[dict[str, Any], list[Any]]) -> None:
    names = ran[0]
    assert (names["pool"].height, names["judged"].height) == (N_EXAMPLES, N_EXAMPLES - 1)
    assert names["sources"]["source"][0] == "set-0"
    assert names["sources"]["top"].sum() == pytest.approx(1.0)
    assert names["by_length"]["rows"].sum() == names["judged"].height
    whole = names["refusals"].filter(pl.col("depth") == "all")
    assert (whole["n_rows"].item(), whole["n_refusals"].item()) == (N_EXAMPLES - 1, N_EXAMPLES // 20)
    assert names["agreement"].height == 3  # pairs of three models
    assert names["agreement"]["spearman"].min() > 0.3
    assert 0 < names["kept"] < names["top"].height
    assert "Answer 3:" in names["outliers"]["response_head"][0]
    assert names["tokens"]["tokens"].sum() == names["judged"]["n_response_tokens"].sum()
    assert 0 < names["shared"] <= names["top"].height
    assert names["disagreement"]["spread"].is_sorted(descending=True)
    assert names["places"]["percentile"].median() < 0.2


# What DuckDB looks at to find out that it runs in a Jupyter kernel.
KERNEL = """
import sys
from types import ModuleType, SimpleNamespace

module = ModuleType("IPython")
module.get_ipython = lambda: SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"] = module

import duckdb

try:
    duckdb.connect().execute("set enable_progress_bar = false")
except duckdb.InvalidInputException:
    print("refused")

from curator.query.database import connect

print(connect(None).execute("select 1").fetchall())
"""


def test_a_store_opens_in_a_kernel_without_ipywidgets() -> None:
    done = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused", "[(1,)]"]
