"""The client's calls about jobs and audits, and that every endpoint has a call."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.settings import Settings
from curator import client as client_module
from curator import client_jobs
from curator.client import Client, ServiceError
from curator.jobs.mixing import run_mix
from curator.jobs.queue import open_queue
from curator.jobs.worker import Worker
from curator.store import Store
from tests.api.serving import RECIPE, json_lines, running, scored_store, task_rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client_jobs")
    scored_store(path)
    return path


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[Client]:
    with running(Settings(store=str(root))) as address, Client(address, retries=1) as found:
        yield found


def test_jobs_are_waited_for_listed_and_removed(client: Client, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(json_lines(task_rows(14, "in a job")))
    job = client.create_mix(path, RECIPE, background=True)
    assert (job["kind"], job["state"]) == ("mix", "queued")
    assert [item["job_id"] for item in client.jobs(kind="mix", state="queued")] == [job["job_id"]]
    seen: list[str] = []
    queue = open_queue(Store(root), None)
    worker = threading.Thread(target=Worker(Store(root), queue, {"mix": run_mix}).run, kwargs={"until_idle": True})
    worker.start()
    done = client.wait_job(job["job_id"], on_job=lambda told: seen.append(told["state"]))
    worker.join()
    queue.close()
    assert (done["state"], seen[-1]) == ("done", "done")
    assert client.manifest(done["result"]["mix_id"])["task"]["n_rows"] == 14
    assert [event["kind"] for event in client.job_events(job["job_id"])["events"]][:2] == ["queued", "started"]
    client.delete_job(job["job_id"])
    with pytest.raises(ServiceError, match="no such job"):
        client.job(job["job_id"])
    cancelled = client.create_mix(path, RECIPE, background=True)
    client.delete_job(cancelled["job_id"])
    with pytest.raises(ServiceError, match="was cancelled"):
        client.wait_job(cancelled["job_id"])


def test_an_audit_is_asked_for(client: Client) -> None:
    job = client.audit(task_rows(3), {"corpus": "chats"}, background=True)
    assert job["kind"] == "audit"
    with pytest.raises(ServiceError, match="the audit is queued") as caught:
        client.audit_result(job["job_id"])
    assert caught.value.code == "job_not_done"
    with pytest.raises(ServiceError, match="the audit is queued"):
        list(client.audit_rows(job["job_id"]))
    client.delete_job(job["job_id"])


def test_every_endpoint_has_a_call(client: Client) -> None:
    """Each route's path stands in the client's text, with its parts filled in."""
    text = "".join(Path(module.__file__ or "").read_text() for module in (client_module, client_jobs))
    flat = re.sub(r"\{[^{}]*\}", "{}", text)
    paths = client._json("GET", "/openapi.json")["paths"]
    assert not [path for path in paths if f'"{re.sub("{.*?}", "{}", path)}"' not in flat and path != "/openapi.json"]
