"""Webhooks of fine-tuning jobs, unwrapped by the official client, which checks their signature."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from api.app import create_app
from api.openai.keeper import Keeper
from api.openai.records import Records
from api.settings import Settings
from curator.store.store import Store
from tests.api.openai_api.steps import ended, work
from tests.api.openai_api.test_train import JOBS, create, train_root, train_settings, until, worker
from tests.api.serving import RECIPE, running, scored_store
from tests.api.test_webhooks import Receiver, new_secret, receiving, wait_for

openai = pytest.importorskip("openai", reason="the official client is not installed (pip install 'openai>=3.57')")


@contextmanager
def told(settings: Settings, folder: Path, *answers: int) -> Iterator[tuple[httpx.Client, Receiver, str, Keeper]]:
    """A service that reports to a receiver: a client of it, the receiver, its secret, and what looks after jobs."""
    secret = new_secret()
    with receiving(*answers) as receiver:
        (folder / "hook.secret").write_text(secret + "\n")
        hook = {"url": receiver.url, "secret_file": "hook.secret"}
        (folder / "tenants.yaml").write_text(yaml.safe_dump({"local": {"webhook": hook}}))
        app = create_app(settings.model_copy(update={"tenants": str(folder / "tenants.yaml")}))
        app.state.service.webhooks.poll_s = app.state.openai.poll_s = 0.1
        app.state.service.webhooks.delays_s = (0.1,) * 3
        with running(app) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
            yield http, receiver, secret, app.state.openai


def unwrapped(receiver: Receiver, secret: str) -> list[Any]:
    """What was received, as the official client gives it to scripts; another secret is refused."""
    with openai.OpenAI(api_key="none", _strict_response_validation=True) as client:
        found = [client.webhooks.unwrap(body, headers, secret=secret) for headers, body in receiver.seen]
        for headers, body in receiver.seen:
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.unwrap(body, headers, secret=new_secret())
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_official_client_takes_the_webhooks_of_trainings(tmp_path: Path) -> None:
    from openai.types import webhooks as kinds

    root = train_root(tmp_path)
    with told(train_settings(root), tmp_path) as (http, receiver, secret, _):
        with worker(root):
            done = create(http, "done")
            assert ended(http, done, 240)["status"] == "succeeded"
            failing = create(http, "failing", model="broken")
            assert ended(http, failing, 240)["status"] == "failed"
            stopped = create(http, "stopped", hyperparameters={"n_epochs": 50})
            until(http, stopped, "Step 1/")
            assert http.post(f"{JOBS}/{stopped}/cancel").json()["status"] == "cancelled"
            receiver.wait(3)
        wait_for(lambda: Store(root / "store").list("webhooks") == [])
        finished = {job_id: http.get(f"{JOBS}/{job_id}").json()["finished_at"] for job_id in (done, failing, stopped)}
    events = unwrapped(receiver, secret)
    assert [(type(event), event.data.id) for event in events] == [
        (kinds.FineTuningJobSucceededWebhookEvent, done),
        (kinds.FineTuningJobFailedWebhookEvent, failing),
        (kinds.FineTuningJobCancelledWebhookEvent, stopped),
    ]
    assert {event.data.id: event.created_at for event in events} == finished
    assert len({event.id for event in events}) == 3, "nothing is told of the jobs that mix and train"


def test_an_end_is_told_until_it_is_taken_and_once_over_restarts(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    settings = Settings(store=store.base, openai_recipe=str(tmp_path / "recipe.yaml"))
    with told(settings, tmp_path, 500) as (http, receiver, secret, keeper):
        job_id = create(http, "mixed")
        work(store.base)
        receiver.wait(2)
        wait_for(lambda: store.list("webhooks") == [])
        (first, second) = unwrapped(receiver, secret)
        assert (first.type, first.data.id, second) == ("fine_tuning.job.succeeded", job_id, first)
        assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 1
        kept = store.read_json(f"{Records(store).path('local', job_id)}/webhook.json")
        assert (kept["state"], [attempt["status"] for attempt in kept["attempts"]]) == ("delivered", [500, 204])
        keeper._over.clear()  # as of a service that was started again
        time.sleep(0.5)
        assert len(receiver.seen) == 2
        records = Records(store)
        keeper._posted(records, "local", job_id)  # as by another service, which had read the record before
        assert store.list("webhooks") == []
        # As when it was killed before the record said so.
        records.write(records.read("local", job_id).model_copy(update={"is_to_be_posted": True}))
        keeper._over.clear()
        receiver.wait(3)
        assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 1, "a receiver knows it by its id"
