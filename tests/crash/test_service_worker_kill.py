"""The worker killed at once (SIGKILL) during a job: another takes the job up again, and nothing half-done is served."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.jobs.board import Board
from api.jobs.record import Job
from curator.mix.verify import verify
from curator.scoring.parts import PATTERN
from curator.store.store import Store
from tests.api.serving import (
    form,
    json_lines,
    running,
    scored_store,
    started,
    task_rows,
)
from tests.crash.test_service_kill import left_in, until_gone
from tests.mix_stores import wide_records
from tests.models import random_conversations, tiny_adapter_folder, tiny_model_folder

ASYNC = {"Prefer": "respond-async"}
SPARSE = {"corpus": "chats", "interleave_ratio": 0.001}
DEADLINE_S = 120.0


@contextmanager
def worker(root: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "api", "worker", "--store", str(root), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(what: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def finish(root: Path, *arguments: str) -> None:
    with worker(root, "--until-idle", *arguments) as process:
        out, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, out


def taken_up_again(job: Job) -> bool:
    return job.state == "done" and job.n_attempts == 2 and "retried" in [event.kind for event in job.events]


@pytest.mark.slow
def test_a_mix_job_begins_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = scored_store(root)
    with started(root, "--workers", "0") as (_, url):
        job = httpx.post(f"{url}/v1/mixes", **form(task_rows(20_000), SPARSE), headers=ASYNC, timeout=60).json()
        board, name = Board(store), ("local", job["job_id"])
        with worker(root) as process:
            until(lambda: (found := board.read(*name).progress) is not None and found.stage == "building", process)
            process.kill()
            process.wait()
        assert board.read(*name).state == "running", "nobody was there to say otherwise"
        assert httpx.get(f"{url}/v1/mixes").json()["mixes"] == [], "nothing half-built is served"
        finish(root)
        assert taken_up_again(board.read(*name))
        mix_id = httpx.get(url + job["links"]["self"]).json()["result"]["mix_id"]
    assert verify(store, "local", mix_id).n_rows == 20_020


@pytest.mark.slow
def test_a_worker_killed_while_it_writes_the_lines_of_a_mix_leaves_none(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = scored_store(root)
    rows = json_lines(wide_records(30_000))
    with started(root, "--workers", "0") as (_, url):
        job = httpx.post(f"{url}/v1/mixes", **form(rows, SPARSE), headers=ASYNC, timeout=60).json()
        with worker(root) as process:
            until(lambda: any(path.stat().st_size for path in root.glob("mixes/local/.*/mix.jsonl")), process)
            process.kill()
            process.wait()
        assert store.list("mixes/local") == []
        finish(root)
        assert taken_up_again(Board(store).read("local", job["job_id"]))
        mix = httpx.get(url + httpx.get(url + job["links"]["self"]).json()["links"]["result"]).json()
        link = f"{url}/v1/mixes/{mix['mix_id']}/data"
        assert hashlib.sha256(httpx.get(link, timeout=60).content).hexdigest() == mix["rows_sha256"]
        assert httpx.delete(f"{url}/v1/mixes/{mix['mix_id']}").status_code == 204
    with started(root, "--workers", "0") as (_, url):
        until_gone(left_in(root / "mixes" / "local", ".*"))
    assert list(root.glob("mixes/local/*/*")) == []


@pytest.mark.slow
def test_an_audit_goes_on_where_it_was(tmp_path: Path) -> None:
    """With a real model: parts that were scored before the kill are not scored again."""
    root = tmp_path / "store"
    model = tiny_model_folder(tmp_path / "model")
    adapter = tiny_adapter_folder(model, tmp_path / "adapter")
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"messages": row}) + "\n" for row in random_conversations(120, seed=1)))
    options = ["--model", str(model), "--device", "cpu", "--threads", "1"]
    shared = ["--store", str(root), "--corpus", "chats"]

    def curator(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "curator", *arguments], check=True, capture_output=True)

    curator("ingest", str(chats), *shared)
    dtype = ["--dtype", "float32", "--max-length", "300"]
    curator("score", *shared, *options, *dtype, "--role", "aligned")
    misaligned = ["--role", "misaligned", "--domain", "finance", "--adapter", str(adapter)]
    curator("score", *shared, *options, *dtype, *misaligned)

    store, rows = Store(root), [{"messages": row} for row in random_conversations(2_000, seed=2)]
    models = [*options, "--adapter", str(adapter)]
    from api.settings import Settings

    with running(Settings(store=str(root))) as url, httpx.Client(base_url=url, timeout=60) as http:
        job: dict[str, Any] = http.post("/v1/audits", **_audit_form(rows)).json()
        folder, board = f"jobs/local/{job['job_id']}", Board(store)

        def parts() -> list[str]:
            work = Store(root / folder / "work")
            scorers = work.list("scores/audited")
            return [f"{scorer}/{name}" for scorer in scorers for name in work.list(f"scores/audited/{scorer}", PATTERN)]

        with worker(root, *models) as process:
            until(lambda: len(parts()) >= 2, process)
            process.kill()
            process.wait()
        scored = {name: (root / folder / "work/scores/audited" / name).stat().st_mtime_ns for name in parts()}
        assert board.read("local", job["job_id"]).state == "running"
        with worker(root, *models) as process:
            until(lambda: len(parts()) > len(scored), process)
            kept = {name: (root / folder / "work/scores/audited" / name).stat().st_mtime_ns for name in scored}
            assert kept == scored, "what was scored before the kill was scored again"
            until(lambda: board.active() == [], process)
        assert taken_up_again(board.read("local", job["job_id"]))
        report = http.get(f"/v1/audits/{job['job_id']}").json()
        page = http.get(f"/v1/audits/{job['job_id']}/rows", params={"limit": 1_000}).json()
        assert (report["n_rows"], page["n_rows"], len(page["rows"])) == (2_000, 2_000, 1_000)
        assert [row["ordinal"] for row in page["rows"]] == list(range(1_000))
        assert store.list(folder) == ["job.json", "rows.parquet"], "the user's rows are gone with the job's end"


def _audit_form(rows: list[dict[str, Any]]) -> dict[str, Any]:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    return {"files": {"file": ("task.jsonl", content)}, "data": {"audit": json.dumps({"corpus": "chats"})}}
