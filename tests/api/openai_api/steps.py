"""Steps of the OpenAI form that several tests take."""

import time
from pathlib import Path
from typing import Any

import httpx

from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from curator.store.store import Store
from tests.api.serving import json_lines, task_rows


def work(root: Path | str) -> None:
    """Do the jobs of a store, as `python -m api worker --until-idle` does."""
    queue = open_queue(Store(root), None)
    try:
        Worker(Store(root), queue, {"mix": run_mix}).run(until_idle=True)
    finally:
        queue.close()


def uploaded(http: httpx.Client, text: str, n_rows: int = 20) -> str:
    """The id of a new training file."""
    files = {"file": ("train.jsonl", json_lines(task_rows(n_rows, text)))}
    answer = http.post("/files", files=files, data={"purpose": "fine-tune"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, whose shape is checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) - {"truncated"} == {"message", "type", "param", "code", "details"}
    assert answer.status_code != 409
    return error


def ended(http: httpx.Client, job_id: str, within_s: float = 60.0) -> dict[str, Any]:
    """The job once it has ended."""
    deadline_s = time.monotonic() + within_s
    while True:
        job: dict[str, Any] = http.get(f"/fine_tuning/jobs/{job_id}").json()
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job
        assert time.monotonic() < deadline_s, job
        time.sleep(0.05)


def events_of(http: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    """The events of a job, oldest first."""
    found: list[dict[str, Any]] = http.get(f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100}).json()["data"]
    return found[::-1]
