"""Jobs over HTTP: when a mix becomes one, what its tenant sees of it, and what other tenants do not."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.jobs.board import Board
from api.jobs.control import Control
from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from api.service import Expiry, Service
from api.settings import Settings
from api.telemetry import LOGGER
from api.tenancy.keys import create_key
from curator.errors import StoreError
from curator.store.store import Store
from tests.api.audited import end_audit
from tests.api.serving import (
    form,
    running,
    scored_store,
    task_rows,
)

ASYNC = {"Prefer": "respond-async, wait=5"}
ABSENT = "0" * 32
LIMIT = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jobs")
    scored_store(path)
    return path


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with running(Settings(store=str(root), async_rows=40, async_bytes=20_000, tenant_jobs=LIMIT)) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def work(root: Path, handler: Any = run_mix) -> None:
    queue = open_queue(Store(root), None)
    try:
        Worker(Store(root), queue, {"mix": handler}).run(until_idle=True)
    finally:
        queue.close()


def test_a_mix_on_request_becomes_a_job_and_the_same_mix(http: httpx.Client, root: Path) -> None:
    asked = http.post("/v1/mixes", **form(task_rows(9, "asked")), headers=ASYNC)
    assert (asked.status_code, asked.headers["preference-applied"]) == (202, "respond-async")
    job = asked.json()
    assert asked.headers["location"] == job["links"]["self"]
    assert http.get(job["links"]["self"]).json() == job
    assert (job["state"], job["result"], list(job["links"])) == ("queued", None, ["self", "events"])
    work(root)
    done = http.get(job["links"]["self"]).json()
    assert (done["state"], done["n_attempts"], done["result"]["created"]) == ("done", 1, True)
    assert http.get(done["links"]["result"]).json()["task"]["n_rows"] == 9
    again = http.post("/v1/mixes", **form(task_rows(9, "asked")))
    assert (again.status_code, again.json()["mix_id"]) == (200, done["result"]["mix_id"])


@pytest.mark.parametrize(
    ("rows", "status"),
    [(task_rows(40, "few"), 201), (task_rows(41, "many"), 202), (task_rows(8, "long" * 1000), 202)],
)
def test_the_rule_is_rows_or_bytes(http: httpx.Client, root: Path, rows: list[Any], status: int) -> None:
    answer = http.post("/v1/mixes", **form(rows))
    assert answer.status_code == status
    assert "preference-applied" not in answer.headers
    work(root)


def test_bad_rows_and_recipes_are_told_before_a_job_is_made(http: httpx.Client, root: Path) -> None:
    bad = http.post("/v1/mixes", **form([*task_rows(50), {"messages": []}]))
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "bad_rows")
    assert http.post("/v1/mixes", **form(task_rows(50), {"corpus": "chats", "x": 1})).status_code == 422
    assert Board(Store(root)).active() == []


def test_a_job_that_cannot_be_done_says_why(http: httpx.Client, root: Path) -> None:
    job = http.post("/v1/mixes", **form(task_rows(50), {"corpus": "nowhere"})).json()
    work(root)
    failed = http.get(job["links"]["self"]).json()
    assert (failed["state"], failed["error"]["code"]) == ("failed", "not_found")
    assert "nowhere" in failed["error"]["message"]
    assert str(root) not in str(failed)


def test_the_same_key_gives_the_same_job(http: httpx.Client, root: Path) -> None:
    headers = {**ASYNC, "Idempotency-Key": "one"}
    first = http.post("/v1/mixes", **form(task_rows(6, "keyed")), headers=headers)
    work(root)
    second = http.post("/v1/mixes", **form(task_rows(6, "keyed")), headers=headers)
    assert second.headers["idempotency-replayed"] == "true"
    assert (second.status_code, second.json()["job_id"]) == (202, first.json()["job_id"])
    assert second.json()["state"] == "done"
    assert http.delete(first.json()["links"]["self"]).status_code == 204
    third = http.post("/v1/mixes", **form(task_rows(6, "keyed")), headers=headers)
    assert third.json()["job_id"] != first.json()["job_id"], "a job that was removed is made again"
    work(root)


def test_more_jobs_than_the_share_are_refused_until_one_ends(http: httpx.Client, root: Path) -> None:
    jobs = [http.post("/v1/mixes", **form(task_rows(5, f"share {n}")), headers=ASYNC) for n in range(LIMIT + 1)]
    assert [answer.status_code for answer in jobs] == [202] * LIMIT + [429]
    assert jobs[-1].json()["error"]["code"] == "too_many_jobs"
    assert int(jobs[-1].headers["retry-after"]) > 0
    cancelled = http.delete(jobs[0].json()["links"]["self"])
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert http.post("/v1/mixes", **form(task_rows(5, "again")), headers=ASYNC).status_code == 202
    work(root)


def test_jobs_are_listed_by_state_and_page(http: httpx.Client, root: Path) -> None:
    made = [http.post("/v1/mixes", **form(task_rows(5, f"listed {n}")), headers=ASYNC).json() for n in range(2)]
    waiting = http.get("/v1/jobs", params={"state": "queued"}).json()
    assert [job["job_id"] for job in waiting["jobs"]] == [job["job_id"] for job in made]
    page = http.get("/v1/jobs", params={"state": "queued", "limit": 1}).json()
    assert page["next_after"] == made[0]["job_id"]
    rest = http.get("/v1/jobs", params={"state": "queued", "after": page["next_after"]}).json()
    assert ([job["job_id"] for job in rest["jobs"]], rest["next_after"]) == ([made[1]["job_id"]], None)
    assert http.get("/v1/jobs", params={"kind": "audit"}).json()["jobs"] == []
    work(root)


def test_a_running_job_tells_its_progress_and_stops_when_told(http: httpx.Client, root: Path) -> None:
    job = http.post("/v1/mixes", **form(task_rows(5, "slow")), headers=ASYNC).json()
    begun, go_on = threading.Event(), threading.Event()

    def slowly(store: Store, rows: Path, control: Control) -> dict[str, Any]:
        control.stage("waiting", 7, "rows")
        begun.set()
        assert go_on.wait(30)
        time.sleep(1.1)  # progress is looked at once a second
        control.advance(3)
        raise AssertionError("it went on")

    thread = threading.Thread(target=work, args=(root, slowly))
    thread.start()
    assert begun.wait(30)
    seen = http.get(job["links"]["self"]).json()
    assert (seen["state"], seen["progress"]) == (
        "running", {"stage": "waiting", "done": 0, "total": 7, "unit": "rows"},
    )  # fmt: skip
    asked = http.delete(job["links"]["self"])
    assert (asked.status_code, asked.json()["state"]) == (202, "running")
    go_on.set()
    events = http.get(job["links"]["events"], params={"after": 3, "wait_s": 30}).json()
    assert events["events"][0]["number"] == 4
    thread.join(30)
    assert http.get(job["links"]["self"]).json()["state"] == "cancelled"
    assert http.delete(job["links"]["self"]).status_code == 204
    assert http.get(job["links"]["self"]).status_code == 404


def test_events_are_answered_at_once_when_there_is_nothing_to_wait_for(http: httpx.Client, root: Path) -> None:
    job = http.post("/v1/mixes", **form(task_rows(5, "events")), headers=ASYNC).json()
    assert [event["kind"] for event in http.get(job["links"]["events"]).json()["events"]] == ["queued"]
    assert http.get(job["links"]["events"], params={"after": 9}).json()["events"] == []
    work(root)
    ended = http.get(job["links"]["events"], params={"after": 99, "wait_s": 60}).json()
    assert (ended["state"], ended["events"]) == ("done", [])


def test_an_expired_job_is_gone(root: Path) -> None:
    with running(Settings(store=str(root), job_ttl_s=0.001)) as address, httpx.Client(base_url=address) as http:
        job = http.post("/v1/mixes", **form(task_rows(5, "expired")), headers=ASYNC).json()
        work(root)
        assert http.get(job["links"]["self"]).status_code == 404
        assert job["job_id"] not in str(http.get("/v1/jobs").json())


def test_a_job_builds_an_expired_mix_again(root: Path) -> None:
    brief = Settings(store=str(root), mix_ttl_s=3_600.0)
    with running(brief) as address, httpx.Client(base_url=address, timeout=30) as http:
        made = http.post("/v1/mixes", **form(task_rows(6, "brief"))).json()
        then = time.time() - 4_000
        os.utime(root / "mixes" / "local" / made["mix_id"] / "manifest.json", (then, then))
        job = http.post("/v1/mixes", **form(task_rows(6, "brief")), headers=ASYNC).json()
        work(root)
        result = http.get(job["links"]["self"]).json()["result"]
        assert (result["mix_id"], result["created"]) == (made["mix_id"], True)
        assert http.get(made["links"]["self"]).status_code == 200


@pytest.mark.parametrize("headers", [{}, ASYNC])
def test_a_repeat_never_names_what_is_over_its_time(root: Path, headers: dict[str, str]) -> None:
    brief = Settings(store=str(root), mix_ttl_s=3_600.0, job_ttl_s=3_600.0)
    with running(brief) as address, httpx.Client(base_url=address, timeout=30) as http:
        keyed = {**headers, "Idempotency-Key": f"brief {len(headers)}"}
        body = form(task_rows(6, f"kept briefly {len(headers)}"))
        first = http.post("/v1/mixes", **body, headers=keyed).json()
        if headers:
            work(root)
            path = root / "jobs" / "local" / first["job_id"] / "job.json"
            document = json.loads(path.read_text())
            document["ended_at"] = "2020-01-01T00:00:00Z"
            path.write_text(json.dumps(document))
        else:
            then = time.time() - 4_000
            os.utime(root / "mixes" / "local" / first["mix_id"] / "manifest.json", (then, then))
        assert http.get(first["links"]["self"]).status_code == 404
        again = http.post("/v1/mixes", **body, headers=keyed)
        assert "idempotency-replayed" not in again.headers
        assert http.get(again.json()["links"]["self"]).status_code == 200
        replayed = http.post("/v1/mixes", **body, headers=keyed)
        assert replayed.headers["idempotency-replayed"] == "true"
        assert replayed.json()["links"]["self"] == again.json()["links"]["self"]
        work(root)


@pytest.mark.parametrize("error", [KeyError("unforeseen"), StoreError("the bucket is away")])
def test_one_sweep_that_fails_keeps_no_other_from_its_work(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    service, seen = Service(Settings(store=str(root), job_ttl_s=60), Store(root)), []

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(logging.getLogger(LOGGER), "propagate", True)
    monkeypatch.setattr(Expiry, "sweep_mixes", fail)
    monkeypatch.setattr(Board, "sweep", lambda board, ttl_s: seen.append(ttl_s))
    try:
        service.tidy()
    finally:
        service.close()
    assert seen == [60]
    assert [record.message for record in caplog.records] == ["sweep failed"]


def test_the_sweeping_goes_on_after_any_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = threading.Event()

    def tidy(service: Service) -> None:
        if not swept.is_set():
            swept.set()
            raise ValueError("unforeseen")
        again.set()

    again = threading.Event()
    monkeypatch.setattr(Service, "tidy", tidy)
    monkeypatch.setattr("api.app.SWEEP_S", 0.01)
    with running(Settings(store=str(root))):
        assert again.wait(30)


def test_folders_of_no_tenant_are_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    for name in ("mixes/.tmp", "mixes/LOST+FOUND", "jobs/LOST+FOUND", "idempotency/LOST+FOUND"):
        store.write_bytes(f"{name}/file", b"")
    store.write_bytes(f"mixes/anna/{ABSENT}/manifest.json", b"{}")
    then = time.time() - 4_000
    os.utime(tmp_path / "mixes" / "anna" / ABSENT / "manifest.json", (then, then))
    expiry = Expiry(store, 3_600.0)
    assert expiry.sweep_mixes() == 1
    expiry.sweep_keys()
    assert Board(store).sweep(3_600.0) == 0
    assert store.list("mixes/anna") == []


def test_a_queue_that_is_away_leaves_no_job(root: Path) -> None:
    away = Settings(store=str(root), job_queue="redis://127.0.0.1:1/0")
    with running(away) as address, httpx.Client(base_url=address, timeout=30) as http:
        answer = http.post("/v1/mixes", **form(task_rows(5, "away")), headers=ASYNC)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unreachable")
    assert Board(Store(root)).active() == []


def test_another_tenants_job_is_answered_like_one_that_does_not_exist(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    tokens = {name: create_key(store, name, ["mix", "audit"])[1] for name in ("anna", "bert")}
    narrow = create_key(store, "anna", ["audit"])[1]
    with running(Settings(store=str(tmp_path))) as address, httpx.Client(base_url=address, timeout=30) as http:

        def ask(token: str, method: str, path: str) -> tuple[int, bytes, list[tuple[str, str]]]:
            answer = http.request(method, path, headers={"Authorization": f"Bearer {token}"})
            reported = [(name, value) for name, value in answer.headers.items() if name not in ("date", "x-request-id")]
            return answer.status_code, answer.content, reported

        headers = {**ASYNC, "Authorization": f"Bearer {tokens['anna']}"}
        made = [
            http.post("/v1/mixes", **form(task_rows(9)), headers=headers),
            http.post("/v1/audits", json={"rows": task_rows(9), "audit": {"corpus": "chats"}}, headers=headers),
        ]
        mix_job, audit_job = (answer.json()["job_id"] for answer in made)
        paths = http.get("/openapi.json").json()["paths"]
        links = [
            (method.upper(), path + query)
            for path, operations in paths.items()
            for method in operations
            for query in ("", "?wait_s=1", "?limit=0", "?after=1")
            if "{job_id}" in path
        ]
        assert len(links) >= 20
        for state in ("queued", "done"):  # of both jobs
            for token, job_id in ((tokens["bert"], mix_job), (tokens["bert"], audit_job), (narrow, mix_job)):
                for method, link in links:
                    theirs, absent = (ask(token, method, link.format(job_id=item)) for item in (job_id, ABSENT))
                    assert theirs == absent, f"{method} {link} {state}"
            assert ask(tokens["bert"], "GET", "/v1/jobs")[1] == b'{"jobs":[],"next_after":null}'
            listed = json.loads(ask(narrow, "GET", "/v1/jobs")[1])["jobs"]
            assert [job["job_id"] for job in listed] == [audit_job], "another scope's job is not listed"
            for job_id in (mix_job, audit_job):
                shown = json.loads(ask(tokens["anna"], "GET", f"/v1/jobs/{job_id}")[1])
                assert shown["state"] == state, "nothing of it was removed"
            audit_status = 200 if state == "done" else 409
            for tail in ("", "/rows"):
                assert ask(tokens["anna"], "GET", f"/v1/audits/{audit_job}{tail}")[0] == audit_status
            work(tmp_path)
            end_audit(store, "anna", audit_job)
