"""A full disk under the service, its worker and what the commands call: a clear refusal, nothing half-written, and all
well once there is room."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.jobs.board import Board
from api.jobs.command import Worker
from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from api.tenancy.keys import create_key, list_keys
from curator.corpus.ingest import ingest
from curator.corpus.manifest import corpus_names
from curator.errors import StoreError, is_full
from curator.mix.build import build_lasting, build_mix, remove_mix
from curator.mix.sign import SIGNATURE_FILE
from curator.mix.verify import verify
from curator.recipe import parse_recipe
from curator.store.store import Store
from tests.api.serving import (
    RECIPE,
    form,
    json_lines,
    scored_store,
    started,
    task_rows,
)
from tests.api.test_webhooks import new_secret, receiving, service_for
from tests.crash.test_service_kill import whole_mixes
from tests.mix_stores import task_set, wide_records
from tests.toy_scoring import chat_file, corpus_ids, losses, toy_model_folder, toy_score

SIZE, PAGE = 6 * 2**20, 4_096
FULL = {(507, "storage_full"), (503, "queue_unreachable")}  # SQLite's file of messages has errors of its own
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
    filler = path / "filler"
    while True:
        filler.unlink(missing_ok=True)
        free = os.statvfs(path)
        try:
            filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - leave))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            continue  # the service took some of it meanwhile, as for a line of its usage log
        return filler


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
def test_each_write_of_each_request_may_find_the_disk_full(small_disk: Path) -> None:
    """With one page more from try to try, the disk is full at one write after the other.

    Each is refused and leaves no record; the try that has room succeeds, with the key that the others had.
    """
    root, recipe = small_disk / "store", small_disk / "recipe.yaml"
    scored_store(root)
    recipe.write_text(json.dumps(RECIPE))
    options = ("--temp-dir", str(small_disk), "--workers", "0", "--openai-recipe", str(recipe), "--log-level", "error")
    with started(root, *options) as (_, url), httpx.Client(base_url=f"{url}/v1", timeout=60) as http:

        def records() -> list[int]:
            lists = ("/mixes", "mixes"), ("/jobs", "jobs"), ("/files", "data"), ("/fine_tuning/jobs", "data")
            return [len(http.get(path).raise_for_status().json()[name]) for path, name in lists]

        def done(send: Callable[[], httpx.Response]) -> Any:
            before = records()
            for n_pages in range(100):
                fill(small_disk, n_pages * PAGE)
                answer = send()
                if answer.is_success:
                    (small_disk / "filler").unlink()
                    return answer.json() if answer.content else None
                assert (answer.status_code, answer.json()["error"]["code"]) in FULL, answer.text
                (mixes, *others), left = before, records()
                assert left[0] in (mixes, mixes + 1), "a mix may be whole, and only its key not kept"
                assert left[1:] == others, "a refused request left a record"
            raise AssertionError(f"{100 * PAGE} bytes were not enough")

        keys = (f"key {number}" for number in count())
        rows, file = {"rows": task_rows(3), "recipe": RECIPE}, ("train.jsonl", json_lines(task_rows(20)))

        def post(path: str, **arguments: Any) -> Any:
            headers = {"Idempotency-Key": next(keys)} | arguments.pop("headers", {})
            return done(lambda: http.post(path, **arguments, headers=headers))

        mix = post("/mixes", **form(task_rows(5)))
        assert post("/mixes", json=rows)["mix_id"] != mix["mix_id"]
        job = post("/mixes", **form(task_rows(7)), headers={"Prefer": "respond-async"})
        post("/audits", json={"rows": task_rows(3), "audit": {"corpus": "chats"}})
        post("/checks", files={"file": file})
        post("/mixes/private", json={"recipe": RECIPE, "n_rows": 50, "sha256": "0" * 64})
        sent = post("/files", files={"file": file}, data={"purpose": "fine-tune"})
        tuning = post("/fine_tuning/jobs", json={"model": "mine", "training_file": sent["id"]})
        assert done(lambda: http.post(f"/fine_tuning/jobs/{tuning['id']}/cancel"))["status"] == "cancelled"
        assert done(lambda: http.delete(f"/jobs/{job['job_id']}"))["state"] == "cancelled"
        fill(small_disk, 0)
        data = f"/mixes/{mix['mix_id']}/data"
        read = [http.get(data, params={"format": name}) for name in ("jsonl", "parquet", "openai")]
        asked = [
            http.post("/sql", json={"statement": "SELECT count(*) AS n FROM gap"}),
            http.get(f"/mixes/{mix['mix_id']}/rows"),
        ]
        assert [answer.status_code for answer in (*read, *asked)] == [200] * 5, "reading needs no room"
        assert http.delete(f"/mixes/{mix['mix_id']}").status_code == 204, "nor does removing"
        assert http.delete(f"/files/{sent['id']}").status_code == 200
        (small_disk / "filler").unlink()
        assert whole_mixes(url) == 1


@pytest.mark.slow
def test_each_write_of_what_the_commands_do_may_find_the_disk_full(small_disk: Path, tmp_path: Path) -> None:
    store = Store(small_disk / "store").open()
    file, tasks = chat_file(tmp_path / "chats.jsonl", 60), task_set(tmp_path)
    models = [toy_model_folder(tmp_path / name, name) for name in ("base", "bad")]

    def done(work: Callable[[], Any], records: Callable[[], Any]) -> None:
        before = records()
        for n_pages in range(200):
            fill(small_disk, n_pages * PAGE)
            try:
                work()
            except StoreError as error:
                if not is_full(error):
                    raise
                assert records() == before, "a broken-off piece of work left a record"
            else:
                (small_disk / "filler").unlink()
                assert records() != before
                assert n_pages > 0
                return
        raise AssertionError(f"{200 * PAGE} bytes were not enough")

    def scorers() -> list[str]:
        names = store.list("scores/chats")
        return [name for name in names if store.exists(f"scores/chats/{name}/scorer.json")]

    done(lambda: ingest(store, [file], "chats"), lambda: corpus_names(store))
    assert len(corpus_ids(store)) == 60
    done(lambda: toy_score(store, models[0]), scorers)
    done(lambda: toy_score(store, models[1], 1.5, "bad"), scorers)
    recipe = parse_recipe({"corpus": "chats", "rows": 5})
    done(lambda: build_mix(store, tasks, recipe), lambda: store.list("mixes/local"))
    done(lambda: create_key(store, "anna", ["mix"]), lambda: [key.tenant for key in list_keys(store)[0]])
    for scorer in scorers():
        assert losses(store, scorer).keys() == corpus_ids(store)
    (mix_id,) = store.list("mixes/local")
    assert verify(store, "local", mix_id).n_rows == tasks.n_rows + 5


@pytest.mark.slow
def test_a_disk_that_has_room_for_a_mix_alone_gets_it_without_its_lines(small_disk: Path, tmp_path: Path) -> None:
    store = scored_store(small_disk / "store")
    tasks, recipe = task_set(tmp_path, records=wide_records(2_000)), parse_recipe(SPARSE)
    filler, found = small_disk / "filler", set[tuple[str, ...]]()
    for n_bytes in range(1_000_000, 5_200_000, 400_000):
        fill(small_disk, n_bytes)
        try:
            result = build_lasting(store, tasks, recipe, "local", None, None)
        except StoreError as error:
            if not is_full(error):
                raise
            found.add(())
            continue
        finally:
            filler.unlink()
            assert not list((small_disk / "store" / "mixes" / "local").glob(".*"))
        assert verify(store, "local", result.mix_id).n_rows == 2_002
        names = store.list(f"mixes/local/{result.mix_id}")
        assert "mix.jsonl" not in names or store.sha256(f"mixes/local/{result.mix_id}/mix.jsonl") == (
            result.manifest.rows_sha256
        )
        found.add(tuple(names))
        remove_mix(store, "local", result.mix_id)
    assert found == {(), ("manifest.json", "mix.parquet"), ("manifest.json", "mix.jsonl", "mix.parquet")}


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
    error = StoreError("cannot write")
    error.__cause__ = OSError(number, "full")
    assert is_full(error)
    assert not is_full(StoreError("cannot write"))
