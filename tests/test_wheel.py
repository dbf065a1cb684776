"""The source distribution makes the wheel, and the wheel carries the SQL: an environment that holds nothing but it and
DuckDB can query."""

import subprocess
import sys
import venv
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.extras import PACKAGES, ROOT, copy_source

QUERY = """
import duckdb, sql
connection = duckdb.connect()
for name in sql.MACROS:
    connection.execute(sql.view_text(name))
assert sql.load_query("top_by_gap").sql.strip()
print(connection.execute("select round(gap_rel(1.8, 1.0, 1.0), 4)").fetchone()[0], len(sql.query_names()))
"""


def test_no_package_is_pinned_twice() -> None:
    """`make test-vllm` installs under both files, so a version in one may not contradict the other."""
    pinned = [
        line.partition("==")[0].lower().replace("_", "-")
        for name in ("constraints.txt", "constraints-vllm.txt")
        for line in (ROOT / name).read_text().splitlines()
        if "==" in line
    ]
    assert [name for name, n_pins in Counter(pinned).items() if n_pins > 1] == []


@pytest.mark.timeout(800)  # three steps that reach the package index
def test_sdist_and_wheel_in_an_empty_environment_runs_a_query(tmp_path: Path) -> None:
    source = copy_source(tmp_path)
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(source)]  # the wheel out of the sdist
    subprocess.run(build, check=True, timeout=240, stdout=subprocess.DEVNULL)
    assert len(list(tmp_path.glob("ballast_mix-*.tar.gz"))) == 1
    (wheel,) = tmp_path.glob("ballast_mix-*.whl")
    files = {path.relative_to(source).as_posix() for name in PACKAGES for path in (source / name).rglob("*.*")}
    with zipfile.ZipFile(wheel) as packed:
        assert files - set(packed.namelist()) == set(), "data files that package-data in pyproject.toml leaves out"
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "-q", "install"]
    subprocess.run([*install, "--no-deps", str(wheel)], check=True, timeout=240)
    subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), "duckdb"], check=True, timeout=240)
    done = subprocess.run([str(python), "-c", QUERY], cwd=tmp_path, capture_output=True, text=True, check=True)
    gap, n_queries = done.stdout.split()
    assert float(gap) == 0.4
    assert int(n_queries) > 0
