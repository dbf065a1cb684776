"""The client's calls about jobs and audits, and that every endpoint has a call."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from api.settings import Settings
from curator.client import Client, ServiceError
from curator.store.store import Store
from tests.api.serving import (
    RECIPE,
    json_lines,
    running,
    scored_store,
    task_rows,
)


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
    done = client.wait_job(job["job_id"], on_job=lambda reported: seen.append(reported["state"]))
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


def test_every_endpoint_has_a_call(client: Client, root: Path, tmp_path: Path) -> None:
    """Each method of each route is called by some method of the client's, whatever it is answered."""
    asked: set[tuple[str, str]] = set()
    client._http.event_hooks["request"].append(lambda request: asked.add((request.method, request.url.path)))
    task, name = task_rows(3, "every endpoint"), "0" * 32
    calls: list[Callable[[], object]] = [
        lambda: client.create_mix(task, RECIPE),
        lambda: client.preview_mix(task, RECIPE),
        lambda: client.check(task),
        lambda: client.mix_private(task, RECIPE, store=tmp_path / "own"),
        lambda: client.audit(task, {"corpus": "chats"}, background=True),
        lambda: list(client.list_mixes()),
        lambda: client.manifest(name),
        lambda: client.signature(name),
        client.policy,
        lambda: list(client.usage()),
        client.usage_totals,
        lambda: list(client.iter_rows(name)),
        lambda: client.download(client.create_mix(task, RECIPE)["mix_id"], tmp_path / "mix"),
        lambda: client.delete_mix(name),
        lambda: list(client.jobs()),
        lambda: client.job(name),
        lambda: client.job_events(name),
        lambda: client.delete_job(name),
        lambda: client.audit_result(name),
        lambda: list(client.audit_rows(name)),
        lambda: client.token_losses("chats", name),
        lambda: client.token_loss_result(name),
        client.reports,
        lambda: client.report("none.md"),
        client.corpora,
        lambda: client.corpus("chats"),
        lambda: client.gap("chats"),
        lambda: client.sql("select 1 as a"),
        client.queries,
        lambda: client.query("top_by_gap", n=1),
        client.health,
        client.ready,
        client.metrics,
    ]
    for call in calls:
        with suppress(ServiceError):
            call()
    paths = client._json("GET", "/openapi.json")["paths"]
    offered = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    patterns = {item: re.compile(re.sub(r"\\{.*?\\}", "[^/]+", re.escape(item[1]))) for item in offered}
    # A route without a parameter is its own path and none of another's.
    plain = {item for item in offered if "{" not in item[1]}
    missing = {
        (method, path)
        for method, path in offered
        if not any(
            verb == method and patterns[(method, path)].fullmatch(link) and (path == link or (verb, link) not in plain)
            for verb, link in asked
        )
    }
    assert missing == set()
    assert len(offered) >= 22
    client._http.event_hooks["request"].clear()
