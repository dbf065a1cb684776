"""A full disk under the service and its worker: a clear 507, nothing half-written, all well once there is room."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.jobs.board import Board
from api.jobs.command import Worker
from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from curator.mix.build import build_mix
from curator.mix.sign import SIGNATURE_FILE
from curator.recipe import parse_recipe
from tests.api.serving import (
    RECIPE,
    form,
    scored_store,
    started,
    task_rows,
)
from tests.api.test_webhooks import new_secret, receiving, service_for
from tests.crash.test_service_kill import whole_mixes
from tests.mix_stores import task_set

SIZE = 6 * 2**20
SPARSE = {"corpus": "chats", "interleave_ratio": 0.001}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of a few megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root and a mount that is allowed")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path, leave: int) -> Path:
    """A file that leaves so many bytes of the disk."""
    ballast = path / "filler"
    free = os.statvfs(path)
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - leave))
    return ballast


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path) -> None:
    root, uploads = small_disk / "store", small_disk / "uploads"
    scored_store(root)
    uploads.mkdir()
    with started(root, "--temp-dir", str(uploads), "--async-rows", "10000") as (process, url):
        assert httpx.post(f"{url}/v1/mixes", **form(task_rows(5)), timeout=60).status_code == 201
        filler = fill(small_disk, 300_000)
        large = form(task_rows(4_000, "large"), SPARSE)
        refused = httpx.post(f"{url}/v1/mixes", **large, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
        assert str(small_disk) not in refused.text
        assert whole_mixes(url) == 1
        filler.unlink()
        filler = fill(small_disk, 1_000_000)  # now the upload fits, and the store has no room for the mix
        second = httpx.post(f"{url}/v1/mixes", **large, timeout=60)
        assert second.status_code in (201, 507)
        assert whole_mixes(url) == 1 + (second.status_code == 201)
        filler.unlink()
        assert httpx.post(f"{url}/v1/mixes", **large, timeout=60).status_code in (200, 201)
        assert httpx.get(f"{url}/readyz").status_code == 200
        process.kill()
    assert not list(uploads.glob("*/*")), "no upload outlives its request"
    with started(root, "--temp-dir", str(uploads)) as (_, url):
        assert whole_mixes(url) == 2
        assert not list((root / "mixes" / "local").glob(".*"))


@pytest.mark.slow
def test_a_job_on_a_full_disk_is_tried_again_when_there_is_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_disk / "store"
    store = scored_store(root)
    board, queue = Board(store), open_queue(store, None)
    with started(root, "--temp-dir", str(small_disk), "--workers", "0") as (_, url):
        body, headers = form(task_rows(4_000), SPARSE), {"Prefer": "respond-async"}
        job = httpx.post(f"{url}/v1/mixes", **body, headers=headers, timeout=60).json()
        name = ("local", job["job_id"])
        filler = fill(small_disk, 60_000)
        worker = Worker(store, queue, {"mix": run_mix})
        monkeypatch.setattr("api.jobs.worker.PAUSE_S", 0.0)
        assert worker.step()
        assert (board.read(*name).state, board.read(*name).n_attempts) == ("queued", 1)
        assert whole_mixes(url) == 0
        filler.unlink()
        worker.run(until_idle=True)
        assert (board.read(*name).state, board.read(*name).n_attempts) == ("done", 2)
        assert whole_mixes(url) == 1
    queue.close()


@pytest.mark.slow
def test_usage_log_and_signatures_on_a_full_disk(small_disk: Path) -> None:
    """Requests are answered without the log; what was torn is passed over; a signature is made once there is room."""
    root, key = small_disk / "store", small_disk / "key.pem"
    store = scored_store(root)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    mix_id = build_mix(store, task_set(small_disk), parse_recipe(RECIPE)).mix_id
    with started(root, "--sign-key", str(key), "--workers", "0") as (process, url):
        assert httpx.get(f"{url}/v1/mixes", timeout=60).status_code == 200
        filler = fill(small_disk, 0)
        for _ in range(60):  # the last page of the log's file has room for some events
            assert httpx.get(f"{url}/v1/mixes", timeout=60).status_code == 200
        refused = httpx.get(f"{url}/v1/mixes/{mix_id}/signature", timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
        filler.unlink()
        assert httpx.get(f"{url}/v1/mixes/{mix_id}/signature", timeout=60).status_code == 200
        assert store.exists(f"mixes/local/{mix_id}/{SIGNATURE_FILE}")
        events = httpx.get(f"{url}/v1/usage", params={"limit": 1_000}, timeout=60).json()["events"]
        assert 2 <= len(events) < 63
        assert events[-1]["action"] == "GET /v1/mixes/{mix_id}/signature", "the log goes on in a file of its own"
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert "usage is not logged" in told


@pytest.mark.slow
def test_a_report_that_cannot_be_recorded_is_not_sent_again_at_once(small_disk: Path) -> None:
    with receiving() as receiver:
        app, store = service_for(small_disk, receiver.url, [new_secret()])
        board, webhooks = Board(store), app.state.service.webhooks
        job = board.create("acme", "mix", {}, announce=lambda job_id: webhooks.expect("acme", job_id))
        board.end(job.ended("done", "done", result={}))
        filler = fill(small_disk, 0)
        for _ in range(5):
            webhooks.deliver_due()
        assert len(receiver.seen) == 1
        assert store.list("webhooks") == [f"acme~{job.job_id}.json"]
        filler.unlink()
        webhooks._paused_s.clear()
        webhooks.deliver_due()
        assert [headers["webhook-id"] for headers, _ in receiver.seen] == [f"msg_{job.job_id}"] * 2
        assert store.list("webhooks") == []
        assert store.read_json(f"jobs/acme/{job.job_id}/webhook.json")["state"] == "delivered"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_errors_that_mean_a_full_disk(number: int) -> None:
    from api.errors import is_full
    from curator.errors import StoreError

    error = StoreError("cannot write")
    error.__cause__ = OSError(number, "full")
    assert is_full(error)
    assert not is_full(StoreError("cannot write"))
