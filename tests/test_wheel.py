"""The wheel carries the SQL: an environment that holds nothing but it and DuckDB can query."""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

QUERY = """
import duckdb, sql
connection = duckdb.connect()
for name in sql.MACROS:
    connection.execute(sql.view_text(name))
print(connection.execute("select round(gap_rel(1.8, 1.0, 1.0), 4)").fetchone()[0], len(sql.query_names()))
"""


def test_wheel_in_an_empty_environment_runs_a_query(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True, timeout=240)
    (wheel,) = tmp_path.glob("ballast-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    subprocess.run([*install, "--no-deps", str(wheel)], check=True, timeout=240)
    subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), "duckdb"], check=True, timeout=240)
    done = subprocess.run([str(python), "-c", QUERY], cwd=tmp_path, capture_output=True, text=True, check=True)
    gap, n_queries = done.stdout.split()
    assert float(gap) == 0.4
    assert int(n_queries) > 0
