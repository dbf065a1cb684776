"""Work in processes beside the service: results and errors come back, and what overruns is ended."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from api.errors import is_full
from api.processes.builders import Builders, WorkLimits, WorkStoppedError
from curator.errors import BadRowsError, StoreError
from curator.store.filesystem import in_our_words

MIB = 2**20
LIMITS = WorkLimits(timeout_s=60.0, memory_bytes=256 * MIB)


@pytest.fixture
def builders() -> Iterator[Builders]:
    made = Builders()
    yield made
    made.close()


def pid() -> int:
    return os.getpid()


def refuse() -> None:
    raise BadRowsError("bad rows", details=[{"line": 1}])


def fill() -> None:
    with in_our_words("write", "mixes/a", "/store"):
        raise OSError(errno.ENOSPC, "No space left on device")


def fail() -> None:
    raise KeyError("a user's row")


def test_one_process_does_one_piece_after_another_and_not_here(builders: Builders) -> None:
    first, second = builders.run(LIMITS, pid), builders.run(LIMITS, pid)
    assert first == second != os.getpid()


def test_an_error_of_ours_comes_back_with_its_details(builders: Builders) -> None:
    with pytest.raises(BadRowsError, match="bad rows") as refused:
        builders.run(LIMITS, refuse)
    assert refused.value.details == [{"line": 1}]


def test_a_full_disk_is_still_known_as_one(builders: Builders) -> None:
    with pytest.raises(StoreError) as failed:
        builders.run(LIMITS, fill)
    assert is_full(failed.value)


def test_another_error_brings_no_text(builders: Builders) -> None:
    with pytest.raises(RuntimeError, match=r"^KeyError$"):
        builders.run(LIMITS, fail)


def test_work_that_takes_too_long_is_ended_and_the_next_is_done(builders: Builders) -> None:
    before = builders.run(LIMITS, pid)
    with pytest.raises(WorkStoppedError, match=r"more than 0\.2 seconds"):
        builders.run(WorkLimits(0.2, 256 * MIB), time.sleep, 60)
    assert not psutil.pid_exists(before)
    assert builders.run(LIMITS, pid) != before


def test_work_that_takes_too_much_memory_is_ended_and_the_next_is_done(builders: Builders) -> None:
    with pytest.raises(WorkStoppedError, match="more memory"):
        builders.run(LIMITS, bytearray, 512 * MIB)
    assert len(builders.run(LIMITS, bytearray, 64 * MIB)) == 64 * MIB


@pytest.mark.parametrize("number", [9, 6])
def test_a_process_that_dies_is_an_error_and_the_next_is_done(builders: Builders, number: int) -> None:
    process = builders.run(LIMITS, pid)
    with pytest.raises(WorkStoppedError):
        builders.run(LIMITS, os.kill, process, number)
    assert builders.run(LIMITS, pid) != process


def test_a_process_that_died_while_it_waited_is_replaced(builders: Builders) -> None:
    process = psutil.Process(builders.run(LIMITS, pid))
    process.kill()
    psutil.wait_procs([process], timeout=20)
    assert builders.run(LIMITS, pid) != process.pid


def test_processes_end_with_the_service(builders: Builders) -> None:
    process = builders.run(LIMITS, pid)
    builders.close()
    assert not psutil.pid_exists(process)


def test_a_process_writes_no_core(builders: Builders, tmp_path: Path) -> None:
    import resource

    assert builders.run(LIMITS, resource.getrlimit, resource.RLIMIT_CORE)[0] == 0
