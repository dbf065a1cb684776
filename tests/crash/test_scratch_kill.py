"""Temporary folders with users' rows: gone after a kill with the next sweep, kept while their process lives."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from api.jobs.board import Board
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from curator.store.scratch import KINDS, Scratch, sweep_scratch
from tests.api.serving import scored_store, started
from tests.crash.test_service_kill import until_gone

PROGRAM = """
import sys, time
from curator.store.scratch import Scratch
folders = [Scratch(kind, sys.argv[1]) for kind in sys.argv[2:]]
for folder in folders:
    (folder.path / "rows").write_text("SECRET")
print("made", flush=True)
time.sleep(600)
"""


@contextmanager
def holder(place: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds a folder of each kind under `place`."""
    command = [sys.executable, "-c", PROGRAM, str(place), *KINDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "system"))


def test_only_what_no_living_process_holds_is_swept(tmp_path: Path) -> None:
    place = tmp_path / "temp"
    place.mkdir()
    (place / "ballast-mine").mkdir()
    (place / "ballast-upload-link").symlink_to(place / "ballast-mine")
    with holder(place) as process, Scratch("upload", place) as own:
        assert sweep_scratch(place) == 0
        assert len(list(place.glob("*/rows"))) == len(KINDS)
        process.kill()
        process.wait()
        assert sweep_scratch(place) == len(KINDS)
        assert own.is_dir()
    assert sorted(path.name for path in place.iterdir()) == ["ballast-mine", "ballast-upload-link"]


def test_a_worker_sweeps_when_it_starts(tmp_path: Path) -> None:
    with holder(tmp_path / "system"):
        pass
    assert list((tmp_path / "system").iterdir())
    store = scored_store(tmp_path / "store")
    queue = open_queue(store, None)
    Worker(store, queue, {}).run(until_idle=True)
    queue.close()
    assert Board(store).active() == []
    assert list((tmp_path / "system").iterdir()) == []


def test_an_upload_that_a_kill_cut_is_gone_after_the_next_start(tmp_path: Path) -> None:
    root, place = tmp_path / "store", tmp_path / "temp"
    scored_store(root)
    place.mkdir()
    begun = threading.Event()

    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"SECRET\n" * 400_000
        while not list(place.glob("ballast-upload-*/upload")):
            begun.wait(0.05)
        process.kill()
        yield b"more"

    with started(root, "--temp-dir", str(place)) as (process, url):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{url}/v1/mixes", content=body(), headers=headers, timeout=60)
        process.wait()
    left = set(place.glob("ballast-*"))  # beside it multiprocessing's own folder, with a socket and no user's row
    assert len(left) == 1
    with started(root, "--temp-dir", str(place)):
        until_gone(left)


def test_a_folder_that_cannot_be_made_is_told_and_leaves_nothing_to_close(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Scratch("sql", tmp_path / "absent")
    gc.collect()  # its end raises nothing either: such warnings are errors here
