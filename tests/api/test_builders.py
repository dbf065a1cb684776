"""Work in processes beside the service: results and errors come back, and what overruns is ended."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.errors import system_failure
from api.processes.builders import Builders, WorkLimits, WorkStoppedError
from curator.errors import BadRowsError, StoreError, is_full
from curator.store.filesystem import in_our_words
from curator.store.scratch import sweep_folder

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


def lack_descriptors() -> None:
    raise RuntimeError(f"IO Error: cannot open file: {os.strerror(errno.EMFILE)}")  # as DuckDB's and Polars's


def fail() -> None:
    raise KeyError("a user's row")


def take_threads() -> None:
    for _ in range(1_000):  # each with a stack of megabytes, which counts as memory
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def lack_a_library() -> None:
    raise ImportError("/lib/numpy/random/_mt19937.so: cannot map zero-fill pages")  # as the loader's


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


def test_a_missing_descriptor_that_only_a_text_tells_is_still_known_as_one(builders: Builders) -> None:
    with pytest.raises(RuntimeError, match=r"^RuntimeError$") as failed:
        builders.run(LIMITS, lack_descriptors)
    answer = system_failure(failed.value)
    assert answer is not None
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


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
    with pytest.raises(WorkStoppedError, match="more memory"):
        builders.run(LIMITS, take_threads)
    with pytest.raises(WorkStoppedError, match="more memory"):
        builders.run(LIMITS, lack_a_library)
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


def count_to(n: int, report: Callable[[Any], None]) -> int:
    for number in range(n):
        report(number)
    return n


def sleep_and_report(_report: Callable[[Any], None]) -> None:
    time.sleep(600)


def test_reports_of_the_work_come_in_their_order(builders: Builders) -> None:
    seen: list[Any] = []
    assert builders.run(LIMITS, count_to, 50, watch=seen.append) == 50
    assert [number for number in seen if number is not None] == list(range(50))


def test_what_the_watch_raises_ends_work_that_reports_nothing(builders: Builders) -> None:
    before = builders.run(LIMITS, pid)

    def stop(report: object) -> None:
        assert report is None
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        builders.run(LIMITS, sleep_and_report, watch=stop)
    assert not psutil.pid_exists(before)


def test_a_service_manager_s_signal_to_all_processes_breaks_off_no_work(builders: Builders) -> None:
    process = builders.run(LIMITS, pid)
    threading.Timer(0.2, os.kill, (process, signal.SIGTERM)).start()
    builders.run(LIMITS, time.sleep, 0.5)
    assert builders.run(LIMITS, pid) == process


def test_a_process_at_work_ends_with_the_one_that_asked_for_it() -> None:
    """Even a killed service leaves none that goes on building."""
    program = """
import os, sys, time
from api.processes.builders import Builders, WorkLimits
from tests.api.test_builders import LIMITS, pid
builders = Builders()
print(builders.run(LIMITS, pid), flush=True)
builders.run(LIMITS, time.sleep, 600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        worker = psutil.Process(int(asking.stdout.readline()))
        time.sleep(0.2)
        assert worker.is_running()
        asking.kill()
        psutil.wait_procs([worker], timeout=20)
        assert not psutil.pid_exists(worker.pid)


def test_a_process_at_work_delays_no_exit() -> None:
    """As multiprocessing would, which ends its processes by SIGTERM and waits for them."""
    program = """
import threading, time
from api.processes.builders import Builders
from tests.api.test_builders import LIMITS, pid
builders = Builders()
builders.run(LIMITS, pid)
threading.Thread(target=builders.run, args=(LIMITS, time.sleep, 600), daemon=True).start()
time.sleep(0.5)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0


def test_the_sockets_of_processes_outlive_no_killed_service_and_have_short_names(tmp_path: Path) -> None:
    """Whatever the folder for uploads is called."""
    long = tmp_path / ("long" * 40)
    long.mkdir()
    program = """
import multiprocessing, os, signal
from api.processes.builders import Builders
from tests.api.test_builders import LIMITS, pid
builders = Builders()
builders.run(LIMITS, pid)
folder = multiprocessing.current_process()._config["tempdir"]
print(folder if os.path.isdir(folder) else "no such folder", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TMPDIR": str(long)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    left = Path(done.stdout.strip())
    assert left.is_absolute(), done.stdout + done.stderr
    assert list(long.iterdir()) == []
    sweep_folder(left.parent)
    assert not left.exists()
