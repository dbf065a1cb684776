"""Reports of finished jobs at a real HTTP receiver, whose signatures are checked without the product's code."""

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.app import create_app
from api.jobs.board import Board
from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from api.processes.webhooks import read_secrets, signature
from api.settings import Settings
from api.tenancy.keys import create_key
from curator.client import Client
from curator.errors import BadInputError
from curator.store.store import Store
from tests.api.serving import RECIPE, running, scored_store, task_rows
from tests.loopback import QuietHandler, serving


@dataclass
class Receiver:
    """What arrived, and what to answer to the n-th report."""

    url: str = ""
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def wait(self, n_seen: int) -> None:
        wait_for(lambda: len(self.seen) >= n_seen)


def wait_for(reached: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.02)


@contextmanager
def receiving(*answers: int) -> Iterator[Receiver]:
    """A server that keeps what is posted; it gives the answers in turn, then 204."""
    receiver = Receiver(answers=list(answers))

    class Handler(QuietHandler):
        def serve(self) -> None:
            body = self.body()
            status = receiver.answers.pop(0) if receiver.answers else 204
            receiver.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

    with serving(Handler) as server:
        receiver.url = f"{server.url}/hook"
        yield receiver


def verified(secret: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """The report, when its signature is that of the secret; written from the specification alone."""
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 300
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert f"v1,{expected}" in headers["webhook-signature"].split(" ")
    report: dict[str, Any] = json.loads(body)
    return report


def new_secret() -> str:
    return "whsec_" + base64.b64encode(os.urandom(32)).decode()


def service_for(
    folder: Path, url: str, secrets: list[str], delays_s: tuple[float, ...] = (0.05,) * 7
) -> tuple[Any, Store]:
    store = scored_store(folder / "store")
    (folder / "acme.secret").write_text("\n".join(secrets) + "\n")
    hook = {"url": url, "secret_file": "acme.secret"}
    (folder / "tenants.yaml").write_text(yaml.safe_dump({"acme": {"webhook": hook}}))
    app = create_app(Settings(store=store.base, tenants=str(folder / "tenants.yaml")))
    app.state.service.webhooks.poll_s = 0.05
    app.state.service.webhooks.delays_s = delays_s
    return app, store


def work(store: Store) -> None:
    queue = open_queue(store, None)
    Worker(store, queue, {"mix": run_mix}).run(until_idle=True)
    queue.close()


def test_the_signature_is_that_of_the_specifications_example() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_ends_of_jobs_are_told_signed_until_they_are_taken(tmp_path: Path) -> None:
    secrets = [new_secret(), new_secret()]
    with receiving(500, 302) as receiver:
        app, store = service_for(tmp_path, receiver.url, secrets)
        _, token = create_key(store, "acme", ["mix"])
        _, other = create_key(store, "other", ["mix"])
        with running(app) as url, Client(url, token) as client, Client(url, other) as neighbour:
            job = client.create_mix(task_rows(6, "secret words"), RECIPE, background=True)
            neighbour.create_mix(task_rows(6), RECIPE, background=True)
            work(store)
            receiver.wait(3)
            mix_id = client.wait_job(job["job_id"])["result"]["mix_id"]
            record = f"jobs/acme/{job['job_id']}/webhook.json"
            wait_for(lambda: store.exists(record))
            cancelled = client.create_mix(task_rows(7), RECIPE, background=True)
            client.delete_job(cancelled["job_id"])
            receiver.wait(4)
            wait_for(lambda: store.list("webhooks") == [])
    assert {headers["webhook-id"] for headers, _ in receiver.seen[:3]} == {f"msg_{job['job_id']}"}
    for headers, body in receiver.seen:
        assert all(verified(secret, headers, body) for secret in secrets)
        assert b"secret words" not in body
    told = [json.loads(body) for _, body in receiver.seen]
    assert [report["type"] for report in told] == ["job.done"] * 3 + ["job.cancelled"]
    assert (told[2]["data"]["mix_id"], told[2]["data"]["link"]) == (mix_id, f"/v1/jobs/{job['job_id']}")
    kept = store.read_json(record)
    assert (kept["state"], [attempt["status"] for attempt in kept["attempts"]]) == ("delivered", [500, 302, 204])


def test_a_receiver_that_is_away_is_tried_again_and_given_up_at_last(tmp_path: Path) -> None:
    app, store = service_for(tmp_path, "http://127.0.0.1:9/closed", [new_secret()], (0.05, 0.05))
    _, token = create_key(store, "acme", ["mix"])
    with running(app) as url, Client(url, token) as client:
        job = client.create_mix(task_rows(6), RECIPE, background=True)
        work(store)
        wait_for(lambda: store.list("webhooks") == [])
    kept = store.read_json(f"jobs/acme/{job['job_id']}/webhook.json")
    assert (kept["state"], [attempt["error"] for attempt in kept["attempts"]]) == ("given_up", ["ConnectError"] * 3)


def test_gone_ends_it_and_a_start_finds_what_was_pending(tmp_path: Path) -> None:
    with receiving(410) as receiver:
        app, store = service_for(tmp_path, receiver.url, [new_secret()])
        _, token = create_key(store, "acme", ["mix"])
        with running(app) as url, Client(url, token) as client:
            job = client.create_mix(task_rows(6), RECIPE, background=True)
        assert store.list("webhooks") == [f"acme~{job['job_id']}.json"]
        work(store)  # while no service runs
        with running(service_for(tmp_path, receiver.url, [new_secret()])[0]):
            wait_for(lambda: store.list("webhooks") == [])
    assert len(receiver.seen) == 1
    assert store.read_json(f"jobs/acme/{job['job_id']}/webhook.json")["state"] == "given_up"


def test_two_processes_tell_it_once_and_a_removed_job_is_not_told(tmp_path: Path) -> None:
    with receiving() as receiver:
        apps = [service_for(tmp_path, receiver.url, [new_secret()]) for _ in range(2)]
        store = apps[0][1]
        _, token = create_key(store, "acme", ["mix"])
        with running(apps[0][0]) as url, running(apps[1][0]), Client(url, token) as client:
            jobs = [client.create_mix(task_rows(n), RECIPE, background=True)["job_id"] for n in range(4, 8)]
            work(store)
            wait_for(lambda: store.list("webhooks") == [])
        ids = sorted(headers["webhook-id"] for headers, _ in receiver.seen)
        assert ids == sorted(f"msg_{job_id}" for job_id in jobs)
        store.write_json(f"webhooks/acme~{jobs[0]}.json", {"torn": True})
        Board(store).remove("acme", jobs[0])
        service = service_for(tmp_path, receiver.url, [new_secret()])[0].state.service
        service.webhooks.deliver_due()
        assert store.list("webhooks"), "it may be a job that is being made"
        service.webhooks.grace_s = 0.0
        service.webhooks.deliver_due()
        service.close()
        assert (store.list("webhooks"), len(receiver.seen)) == ([], 4)


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_????", "whsec_" + base64.b64encode(b"short").decode(), "ä"])
def test_what_is_no_secret_ends_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match="secret_file"):
        read_secrets(tmp_path / "s")
    with pytest.raises(BadInputError, match="secret_file"):
        service_for(tmp_path, "https://acme.example/hook", [text])
