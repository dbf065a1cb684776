"""The service killed at once (SIGKILL): nothing half-written is ever served, and nothing acknowledged is lost.

A hundred instants over uploads, builds, downloads, jobs, deletions and sweeps at once, and some more over large uploads
and over keys that are sent again. `test_service_worker_kill` kills workers, `test_scratch_kill` looks at folders.
"""

import contextlib
import hashlib
import random
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from api.jobs.board import INPUT_FILE, Board
from curator.store.scratch import UNNAMED
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
        mixes = http.get("/v1/mixes", params={"limit": 1_000}).json()["mixes"]
        for item in mixes:
            assert item["status"] == "complete"
            manifest = http.get(item["links"]["self"]).json()
            parquet = http.get(item["links"]["parquet"]).content
            assert hashlib.sha256(parquet).hexdigest() == manifest["files"][0]["sha256"]
            lines = http.get(item["links"]["jsonl"]).content
            assert hashlib.sha256(lines).hexdigest() == manifest["rows_sha256"]
            assert lines.count(b"\n") == manifest["n_rows"]
    return len(mixes)


def left_in(folder: Path, pattern: str = "*") -> set[Path]:
    """What the next start removes: not a folder that was caught before it was locked, which is left for an hour."""
    return {path for path in folder.glob(pattern) if not path.name.startswith(UNNAMED)}


def until_gone(left: set[Path]) -> None:
    """The sweep of the start runs beside the first requests."""
    deadline = time.monotonic() + 60
    while any(path.exists() for path in left):
        assert time.monotonic() < deadline, f"left behind: {sorted(filter(Path.exists, left))}"
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
    left = left_in(uploads)
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


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_ten_instants_of_a_hundred(tmp_path: Path, seed: int) -> None:
    """Uploads, builds, downloads, jobs, deletions and the sweep of each start at once, on one store."""
    root, uploads = tmp_path / "store", tmp_path / "uploads"
    store = scored_store(root)
    uploads.mkdir()
    rng, kept = random.Random(f"instants {seed}"), set[str]()
    for turn in range(10):
        with started(root, "--temp-dir", str(uploads), "--tenant-jobs", "1000", "--job-ttl-s", "1") as (process, url):
            assert kept <= complete_mixes(url), "every mix that was acknowledged is there, and nothing half"
            ended = threading.Event()
            work = [partial(act, url, f"{turn} {number}", kept, ended) for number in range(4)]
            threads = [threading.Thread(target=one) for one in work]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.0, 3.0))
            process.kill()
            process.wait()
            ended.set()
            for thread in threads:
                thread.join()
    left = {*left_in(uploads), *left_in(root / "mixes" / "local", ".*")}
    # Nobody reads its log: more lines than a pipe holds would stop it.
    options = ("--temp-dir", str(uploads), "--tenant-jobs", "1000", "--log-level", "error")
    with started(root, *options) as (_, url):
        until_gone(left)
        assert whole_mixes(url) >= len(kept)
        board, deadline = Board(store), time.monotonic() + 600
        # A kill between a job's mark and its record leaves the mark, which is swept an hour later.
        while any(board.has_record(*found) for found in board.active()):
            assert time.monotonic() < deadline, "a queued job is not done"
            time.sleep(0.2)
        for job_id in (job_id for job_id in board.ids("local") if board.has_record("local", job_id)):
            assert board.read("local", job_id).state == "done"
            assert not store.exists(f"jobs/local/{job_id}/{INPUT_FILE}"), "the user's rows went with its end"
        assert whole_mixes(url) >= len(kept)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_living_process_does_survives_the_kills_and_sweeps_of_another(tmp_path: Path) -> None:
    """Two on one store. One is killed and started again, and sweeps; no request to the other fails meanwhile."""
    root, rng, kept, lost = tmp_path / "store", random.Random("two"), set[str](), set[str]()
    store = scored_store(root)
    options = ("--tenant-jobs", "10000", "--job-ttl-s", "1", "--workers", "0")
    ended = threading.Event()
    with started(root, *options) as (_, url):
        living = [threading.Thread(target=act, args=(url, f"living {number}", kept, ended)) for number in range(2)]
        for thread in living:
            thread.start()
        for turn in range(6):
            with started(root, *options) as (process, other):
                gone = threading.Event()
                dying = threading.Thread(target=act, args=(other, f"dying {turn}", lost, gone))
                dying.start()
                time.sleep(rng.uniform(0.0, 3.0))
                process.kill()
                process.wait()
                gone.set()
                dying.join()
        ended.set()
        for thread in living:
            thread.join()
        assert kept
        assert kept | lost <= complete_mixes(url)
        assert whole_mixes(url) >= len(kept | lost)
    board = Board(store)
    assert {board.read("local", job_id).state for job_id in board.ids("local")} == {"queued"}


def act(url: str, name: str, kept: set[str], ended: threading.Event) -> None:
    """One client: a mix, its download, a job, and one mix in three deleted, until the service is gone."""
    number = 0
    with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=url, timeout=60) as http:
        while not ended.is_set():
            number += 1
            rows = task_rows(200, f"{name} {number}")
            mix_id = http.post("/v1/mixes", **form(rows, SPARSE)).raise_for_status().json()["mix_id"]
            if number % 3 == 0:
                http.delete(f"/v1/mixes/{mix_id}").raise_for_status()
            else:
                kept.add(mix_id)
                http.get(f"/v1/mixes/{mix_id}/data", params={"format": "openai"}).raise_for_status()
            key = f"{name} {number}"
            headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
            http.post("/v1/mixes", **form(task_rows(50, key)), headers=headers).raise_for_status()


def complete_mixes(url: str) -> set[str]:
    """Ids of all mixes, which are complete."""
    found, after = set[str](), ""
    with httpx.Client(base_url=url, timeout=60) as http:
        while True:
            page = http.get("/v1/mixes", params={"limit": 1_000, "after": after}).raise_for_status().json()
            assert {item["status"] for item in page["mixes"]} <= {"complete"}
            found |= {item["mix_id"] for item in page["mixes"]}
            if page["next_after"] is None:
                return found
            after = page["next_after"]
