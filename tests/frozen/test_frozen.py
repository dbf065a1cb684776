"""What recipes give does not change: not with threads, not with the store's parts, not with the code's shape."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frozen.freeze import (
    EXPECTED,
    differences,
    documents,
    read,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("n_threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_documents_are_the_same_at_any_thread_count(tmp_path: Path, n_threads: int) -> None:
    command = [sys.executable, "-m", "tests.frozen", str(tmp_path), "--threads", str(n_threads)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert differences(read(tmp_path), read(EXPECTED)) == []


def test_the_documents_are_the_same_for_other_parts(tmp_path: Path) -> None:
    assert differences(documents(tmp_path, "resplit"), read(EXPECTED)) == []


def test_a_difference_is_reported_by_its_first_key() -> None:
    expected = {"one": {"manifest": {"n_rows": 3, "pools": [{"chosen": 1}]}}}
    found = {"one": {"manifest": {"n_rows": 3, "pools": [{"chosen": 2}]}}}
    assert differences(expected, expected) == []
    assert differences(found, expected) == ["one/manifest/pools/0/chosen: found 2, expected 1"]
    assert differences({}, expected) == [
        'one: found null, expected {"manifest": {"n_rows": 3, "pools": [{"chosen": 1}]}}'
    ]
