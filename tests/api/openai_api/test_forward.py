"""The mode `forward`: one job at the upstream for one job here, whatever fails, and the operator's key nowhere."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from api.app import create_app
from api.openai.forward import Forwarder
from api.openai.records import JobRecord, Records
from api.openai.upstream import UpstreamClient
from api.settings import Settings
from curator.errors import BadInputError
from curator.store.store import Store
from tests.api.openai_api.steps import ended, error_of, uploaded, work
from tests.api.openai_api.upstreams import FAULTS, KEY, Upstream, upstream
from tests.api.serving import RECIPE, running, scored_store, started

JOBS = "/fine_tuning/jobs"


@dataclass
class Place:
    """A service in front of an upstream; its thread is not running: steps are taken by hand."""

    http: httpx.Client
    store: Store
    forwarder: Forwarder
    settings: Settings

    def create(self, text: str, **more: Any) -> str:
        body = {"model": "base", "training_file": uploaded(self.http, text), **more}
        answer = self.http.post(JOBS, json=body)
        assert answer.status_code == 200, answer.text
        work(self.store.base)
        return str(answer.json()["id"])

    def until_started(self, job_id: str) -> None:
        """Take the job until it is started at the upstream."""
        deadline_s = time.monotonic() + 60
        while True:
            record = self.forwarder.step("local", job_id)
            if record is not None and record.upstream is not None and record.upstream.job_id is not None:
                return
            assert time.monotonic() < deadline_s, record
            time.sleep(0.02)

    def steps(self, job_id: str, forwarder: Forwarder | None = None, within_s: float = 60.0) -> JobRecord:
        """Take the job to its end."""
        deadline_s = time.monotonic() + within_s
        while True:
            record = (forwarder or self.forwarder).step("local", job_id)
            if record is not None and not record.is_active:
                return record
            assert time.monotonic() < deadline_s, record
            time.sleep(0.02)


def forward_settings(folder: Path, url: str) -> Settings:
    (folder / "key").write_text(KEY + "\n")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return Settings(
        store=str(folder / "store"),
        openai_mode="forward",
        openai_recipe=str(folder / "recipe.yaml"),
        openai_upstream=url,
        openai_key_file=str(folder / "key"),
    )


@contextmanager
def in_front_of(folder: Path, url: str) -> Iterator[Place]:
    store = scored_store(folder / "store")
    settings = forward_settings(folder, url)
    app = create_app(settings)
    keeper = app.state.openai
    forwarder = replace(keeper.forwarder, settle_s=0.5, follow_s=0.0)
    forwarder.client.http.timeout = 1.0
    keeper.poll_s = 3_600.0
    with running(app) as address, httpx.Client(base_url=f"{address}/v1", timeout=60) as http:
        yield Place(http, store, forwarder, settings)


@pytest.fixture
def place_of(tmp_path: Path) -> Any:
    return lambda found: in_front_of(tmp_path, found.url)


def test_the_mix_is_trained_at_the_upstream_and_mirrored(place_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    with upstream() as found, place_of(found) as place, caplog.at_level(logging.DEBUG):
        held_out = uploaded(place.http, "held out", 12)
        asked = {"suffix": "kind", "seed": 5, "hyperparameters": {"n_epochs": 2}, "metadata": {"team": "red"}}
        job_id = place.create("mirrored", validation_file=held_out, **asked)
        assert place.http.delete(f"/files/{held_out}").status_code == 200, "the job has its own copy"
        place.steps(job_id)
        (sent,) = found.jobs.values()
        assert (sent["model"], sent["suffix"], sent["seed"]) == ("base", "kind", 5)
        assert sent["method"]["supervised"]["hyperparameters"] == {"n_epochs": 2}
        assert sent["metadata"] == {"team": "red", "gateway_job": job_id}
        name, content = found.files[sent["training_file"]]
        assert (name, len(content.splitlines())) == (f"{job_id}.jsonl", 22)
        held = found.files[sent["validation_file"]][1]
        assert [json.loads(line)["messages"][1]["content"] for line in held.splitlines()] == [
            f"held out {n}" for n in range(12)
        ]
        job = place.http.get(f"{JOBS}/{job_id}").json()
        model = "ft:base:ftjob-up0"
        assert (job["status"], job["fine_tuned_model"], job["trained_tokens"]) == ("succeeded", model, 1234)
        assert job["metadata"]["ballast_upstream_job"] == "ftjob-up0"
        mix = place.http.get(f"/files/{job['result_files'][0]}/content").content
        assert mix == content, "the result file is what was sent"
        events = place.http.get(f"{JOBS}/{job_id}/events", params={"limit": 100}).json()["data"]
        metrics = [event["data"]["step"] for event in events if event["type"] == "metrics"]
        assert metrics == [2, 1]
        assert events[0]["message"] == "The job has successfully completed"
        (checkpoint,) = place.http.get(f"{JOBS}/{job_id}/checkpoints").json()["data"]
        assert (checkpoint["fine_tuning_job_id"], checkpoint["step_number"]) == (job_id, 1)
        assert [item["id"] for item in place.http.get("/models").json()["data"]] == [model]
        assert place.http.get(f"/models/{model}").json()["owned_by"] == "org-local"
        assert place.http.delete(f"/models/{model}").json() == {"id": model, "object": "model", "deleted": True}
        assert error_of(place.http.get(f"/models/{model}"), 404)["code"] == "model_not_found"
        assert found.deleted == [model]
        assert found.keys == {f"Bearer {KEY}"}
        kept = [path for path in Path(place.store.base).rglob("*") if path.is_file()]
        assert not [path for path in kept if KEY.encode() in path.read_bytes()]
        assert KEY not in caplog.text


def test_the_deletion_of_a_model_waits_for_whoever_changes_its_job(
    place_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with upstream() as found, place_of(found) as place:
        job_id = place.create("deleted")
        model = place.steps(job_id).model
        records = Records(place.store)
        with ThreadPoolExecutor(1) as pool:
            with records.held("local", job_id):
                deleting = pool.submit(place.http.delete, f"/models/{model}")
                time.sleep(0.3)
                assert not deleting.done()
                assert found.deleted == []
                records.write(records.read("local", job_id).event("meanwhile"))
            assert deleting.result().status_code == 200
        record = records.read("local", job_id)
        assert (record.events[-1].message, record.model_deleted) == ("meanwhile", True)

        other_id = place.create("held")
        model = place.steps(other_id).model
        monkeypatch.setattr("api.openai.model_routes.LOCK_WAIT_S", 0.0)
        with records.held("local", other_id):
            answer = place.http.delete(f"/models/{model}")
        assert error_of(answer, 503)["code"] == "busy"
        assert answer.headers["retry-after"] == "5"
        assert place.http.get(f"/models/{model}").status_code == 200


@pytest.mark.parametrize(
    "only",
    ["POST /files", "POST /fine_tuning/jobs$", "GET .*/ftjob-up[0-9]+$", "GET .*/events", "GET .*/checkpoints"],
)
def test_what_fails_is_tried_again_and_nothing_is_started_twice(place_of: Any, only: str) -> None:
    with upstream(only=only) as found, place_of(found) as place:
        for n_jobs, fault in enumerate(FAULTS, start=1):
            found.faults.append(fault)
            job_id = place.create(f"{only} {fault}")
            assert place.steps(job_id).status == "succeeded"
            assert found.faults == [], "the fault happened"
            assert (len(found.jobs), len(found.files)) == (n_jobs, n_jobs), fault
            events = place.http.get(f"{JOBS}/{job_id}/events", params={"limit": 100})
            assert KEY not in events.text


def test_killed_before_any_write_nothing_is_started_twice(place_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    write = Records.write
    n_left = 0

    def write_or_die(self: Records, record: JobRecord) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            raise KilledError
        write(self, record)

    with upstream() as found, place_of(found) as place:
        n_kills = 0
        for n_writes in range(1, 20):
            job_id = place.create(f"killed {n_writes}")
            n_left = n_writes
            monkeypatch.setattr(Records, "write", write_or_die)
            try:
                place.steps(job_id)
                break  # it came to its end before so many writes
            except KilledError:
                n_kills += 1
            finally:
                monkeypatch.setattr(Records, "write", write)
            assert place.steps(job_id, replace(place.forwarder)).status == "succeeded"
            assert (len(found.jobs), len(found.files)) == (n_writes, n_writes), f"killed at write {n_writes}"
        assert n_kills >= 6


def test_a_refused_start_fails_the_job_with_the_upstreams_reason(place_of: Any) -> None:
    refusal = {"code": "model_not_available", "message": f"no such base model for {KEY}", "param": "model"}
    with upstream(refusal=refusal) as found, place_of(found) as place:
        job_id = place.create("refused")
        place.steps(job_id)
        job = place.http.get(f"{JOBS}/{job_id}").json()
        assert (job["status"], job["error"]["code"]) == ("failed", "model_not_available")
        assert job["error"]["message"] == "no such base model for (key)"


def test_a_job_that_fails_at_the_upstream_fails_here(place_of: Any) -> None:
    with upstream(outcome="failed") as found, place_of(found) as place:
        job_id = place.create("failing")
        assert place.steps(job_id).error == {"code": "bad_luck", "message": "out of luck, key (key)", "param": None}
        assert place.http.get(f"{JOBS}/{job_id}").json()["fine_tuned_model"] is None


def test_cancel_reaches_the_upstream(place_of: Any) -> None:
    with upstream(polls_to_end=10**9) as found, place_of(found) as place:
        job_id = place.create("cancelled")
        place.until_started(job_id)
        answers: list[dict[str, Any]] = []
        asking = threading.Thread(target=lambda: answers.append(place.http.post(f"{JOBS}/{job_id}/cancel").json()))
        asking.start()
        assert place.steps(job_id).status == "cancelled"
        asking.join()
        assert answers[0]["status"] == "cancelled"
        assert [job["status"] for job in found.jobs.values()] == ["cancelled"]


def test_cancelled_before_it_was_sent_nothing_is_sent(place_of: Any) -> None:
    with upstream() as found, place_of(found) as place:
        job_id = place.create("early")
        Records(place.store).ask_to_cancel("local", job_id)
        assert place.steps(job_id).status == "cancelled"
        assert (found.jobs, found.files) == ({}, {})


def test_the_upstream_may_be_the_service_itself(place_of: Any, tmp_path: Path) -> None:
    behind = scored_store(tmp_path / "behind")
    (tmp_path / "behind.yaml").write_text(yaml.safe_dump(RECIPE))
    with running(Settings(store=behind.base, openai_recipe=str(tmp_path / "behind.yaml"))) as url:
        found = Upstream(url=f"{url}/v1")
        with place_of(found) as place:
            job_id = place.create("twice", hyperparameters={"n_epochs": 3})
            place.until_started(job_id)
            work(behind.base)
            assert place.steps(job_id).status == "succeeded"
            messages = [
                event["message"]
                for event in place.http.get(f"{JOBS}/{job_id}/events", params={"limit": 100}).json()["data"]
            ]
            assert messages.count("The job has successfully completed") == 1
            (behind_job,) = httpx.get(f"{url}/v1{JOBS}").json()["data"]
            assert behind_job["metadata"]["ballast_task_rows"] == "22"


@pytest.mark.slow
def test_the_service_itself_forwards_and_survives_being_killed(tmp_path: Path) -> None:
    with upstream(polls_to_end=1) as found:
        store = scored_store(tmp_path / "store")
        forward_settings(tmp_path, found.url)
        arguments = ["--openai-mode", "forward", "--openai-recipe", str(tmp_path / "recipe.yaml")]
        arguments += ["--openai-upstream", found.url, "--openai-key-file", str(tmp_path / "key")]
        job_id = ""
        for wait_s in (0.0, 1.5, 3.0):  # then killed, wherever it is
            with started(store.base, *arguments) as (_, url), httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
                job_id = (
                    job_id
                    or http.post(JOBS, json={"model": "base", "training_file": uploaded(http, "killed")}).json()["id"]
                )
                time.sleep(wait_s)
        with started(store.base, *arguments) as (_, url), httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
            work(store.base)
            job = ended(http, job_id)
        assert (job["status"], len(found.jobs), len(found.files)) == ("succeeded", 1, 1)


def test_the_settings_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs openai_upstream and openai_key_file"):
        Settings(openai_mode="forward", openai_upstream="http://x/v1")
    with pytest.raises(ValueError, match="openai_mode train needs openai_models"):
        Settings(openai_mode="train")
    settings = Settings(openai_mode="forward", openai_upstream="http://x/v1", openai_key_file=str(tmp_path / "none"))
    with pytest.raises(BadInputError, match="cannot be read"):
        UpstreamClient.of(settings)
    (tmp_path / "none").write_text("two words\n")
    with pytest.raises(BadInputError, match="one API key and nothing else"):
        UpstreamClient.of(settings)
