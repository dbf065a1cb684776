"""The service killed at once (SIGKILL) during uploads, builds and downloads: nothing half-written is ever served."""

import contextlib
import hashlib
import random
import threading
import time
from pathlib import Path

import httpx
import pytest

from api.jobs.board import Board
from tests.api.serving import (
    form,
    scored_store,
    started,
    task_rows,
)

SEEDS = range(6)
N_ROWS = 3_000
SPARSE = {"corpus": "chats", "interleave_ratio": 0.01}  # 30 of the pool's 60 rows


def whole_mixes(url: str) -> int:
    """Number of mixes, each checked from its manifest to its last byte."""
    with httpx.Client(base_url=url, timeout=60) as http:
        mixes = http.get("/v1/mixes").json()["mixes"]
        for item in mixes:
            assert item["status"] == "complete"
            manifest = http.get(item["links"]["self"]).json()
            parquet = http.get(item["links"]["parquet"]).content
            assert hashlib.sha256(parquet).hexdigest() == manifest["files"][0]["sha256"]
            lines = http.get(item["links"]["jsonl"]).content
            assert hashlib.sha256(lines).hexdigest() == manifest["rows_sha256"]
            assert lines.count(b"\n") == manifest["n_rows"]
    return len(mixes)


def until_gone(left: set[Path]) -> None:
    """The sweep of the start runs beside the first requests."""
    deadline = time.monotonic() + 60
    while any(path.exists() for path in left):
        assert time.monotonic() < deadline, f"left behind: {sorted(left)}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_while_clients_upload_build_and_download(tmp_path: Path, seed: int) -> None:
    root, uploads = tmp_path / "store", tmp_path / "uploads"
    scored_store(root)
    uploads.mkdir()
    ended = threading.Event()
    with started(root, "--temp-dir", str(uploads)) as (process, url):
        first = httpx.post(f"{url}/v1/mixes", **form(task_rows(500)), timeout=60).json()

        def keep_busy(number: int) -> None:
            turn = 0
            while not ended.is_set():
                turn += 1
                try:
                    if number:
                        body = form(task_rows(N_ROWS, f"{number} {turn}"), SPARSE)
                        httpx.post(f"{url}/v1/mixes", **body, headers={"Idempotency-Key": f"{number}-{turn}"})
                    else:
                        httpx.get(url + first["links"]["jsonl"])
                except httpx.HTTPError:
                    return

        threads = [threading.Thread(target=keep_busy, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(random.Random(seed).uniform(0.2, 4.0))
        process.kill()
        process.wait()
        ended.set()
        for thread in threads:
            thread.join()
    left = set(uploads.iterdir())
    with started(root, "--temp-dir", str(uploads)) as (_, url):
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert whole_mixes(url) >= 1
        body = form(task_rows(N_ROWS, "1 1"), SPARSE)
        headers = {"Idempotency-Key": "1-1"}
        again = httpx.post(f"{url}/v1/mixes", **body, headers=headers, timeout=60)
        assert again.status_code in (200, 201), f"the cut request can be sent again: {again.text}"
        assert whole_mixes(url) >= 2
        until_gone(left)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_key_that_is_sent_again_after_a_kill_has_one_job(tmp_path: Path, seed: int) -> None:
    store = scored_store(tmp_path)
    options = ("--workers", "0", "--tenant-jobs", "10000")
    sent: list[str] = []

    def send(name: str) -> httpx.Response:
        headers = {"Idempotency-Key": name, "Prefer": "respond-async"}
        return httpx.post(f"{url}/v1/mixes", **form(task_rows(5, name)), headers=headers, timeout=60)

    with started(tmp_path, *options) as (process, url):
        killing = threading.Timer(random.Random(seed).uniform(0.5, 2.5), process.kill)
        killing.start()
        with contextlib.suppress(httpx.HTTPError):
            while True:
                sent.append(f"key {len(sent)}")
                assert send(sent[-1]).status_code == 202
        killing.join()
        process.wait()
    assert sent
    with started(tmp_path, *options) as (_, url):
        made = [send(name).json()["job_id"] for name in sent]
    board = Board(store)
    assert sorted(job for job in board.ids("local") if board.has_record("local", job)) == sorted(made)
