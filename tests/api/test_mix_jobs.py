"""Queued mixes are built beside the worker: within limits, with progress, and ended when somebody says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.jobs.board import Board
from api.jobs.queue import open_queue
from api.jobs.record import Job
from api.jobs.worker import Worker
from api.processes.mix_jobs import BoundedMix
from api.settings import Settings
from curator.mix.verify import verify
from tests.api.serving import form, running, scored_store, task_rows

MIB = 2**20
N_ROWS = 20_000
SPARSE = {"corpus": "chats", "interleave_ratio": 0.001}


@contextmanager
def queued(root: Path) -> Iterator[tuple[Worker, Job]]:
    """A worker as the command makes it, and a job that a service with usual limits has queued."""
    store = scored_store(root)
    with running(Settings(store=str(root))) as url:
        headers = {"Prefer": "respond-async"}
        made = httpx.post(f"{url}/v1/mixes", **form(task_rows(N_ROWS), SPARSE), headers=headers, timeout=60).json()
    queue, mixes = open_queue(store, None), BoundedMix()
    try:
        yield Worker(store, queue, {"mix": mixes}), Board(store).read("local", made["job_id"])
    finally:
        mixes.builders.close()
        queue.close()


def with_limits(worker: Worker, job: Job, **limits: float) -> None:
    request: dict[str, Any] = {**job.request, "limits": {**job.request["limits"], **limits}}
    worker.board.write(job.model_copy(update={"request": request}))


def test_a_job_has_the_limits_of_the_service_that_queued_it(tmp_path: Path) -> None:
    with queued(tmp_path) as (worker, job):
        assert job.request["limits"] == {"timeout_s": 600.0, "memory_bytes": 2048 * MIB}
        worker.run(until_idle=True)
        job = worker.board.read("local", job.job_id)
        assert (job.state, job.n_attempts) == ("done", 1)
        assert [event.message for event in job.events if event.kind == "stage"] == ["building"]
        assert job.result is not None
        assert verify(worker.store, "local", job.result["mix_id"]).n_rows == N_ROWS + 20


@pytest.mark.parametrize("limits", [{"timeout_s": 0.05}, {"memory_bytes": MIB}])
def test_a_job_past_a_limit_fails_once_and_the_worker_goes_on(tmp_path: Path, limits: dict[str, float]) -> None:
    with queued(tmp_path) as (worker, job):
        with_limits(worker, job, **limits)
        worker.run(until_idle=True)
        stopped = worker.board.read("local", job.job_id)
        assert stopped.error is not None
        assert (stopped.state, stopped.error.code, stopped.n_attempts) == ("failed", "work_stopped", 1)
        assert worker.store.list("mixes/local") == []
        again = worker.board.create("local", "mix", {**job.request, "task": {}})
        assert worker.do("local", again.job_id), "its next job is done, and fails by its own fault"
        assert worker.board.read("local", again.job_id).state == "failed"


def test_a_job_that_is_cancelled_or_handed_back_ends_at_once(tmp_path: Path) -> None:
    with queued(tmp_path) as (worker, job):
        handler = worker.handlers["mix"]

        def cancelled(*arguments: Any) -> dict[str, Any]:
            assert worker.board.ask_to_cancel("local", job.job_id).state == "running"
            return handler(*arguments)

        worker.handlers = {"mix": cancelled}
        worker.run(until_idle=True)
        assert worker.board.read("local", job.job_id).state == "cancelled"
        assert worker.store.list("mixes/local") == []
