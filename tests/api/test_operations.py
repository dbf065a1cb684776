"""Metrics, readiness, the pinned OpenAPI document and the demo flag."""

import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.__main__ import main
from api.app import create_app
from api.jobs.board import Board
from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from api.settings import Settings
from api.tenancy.keys import SCOPES, create_key
from curator import console
from curator.client import Client
from curator.console import product_version
from tests.api.openapi import GOLDEN, document
from tests.api.serving import (
    RECIPE,
    form,
    running,
    scored_store,
    task_rows,
)


def test_the_openapi_document_is_the_pinned_one() -> None:
    assert document() == GOLDEN.read_bytes(), "make openapi writes it anew; look at what changes for callers"


def test_metrics_count_by_route_and_name_no_one(settings: Settings) -> None:
    with running(settings) as url, httpx.Client(base_url=url, timeout=30) as http:
        made = http.post("/v1/mixes", **form(task_rows(4, "counted"))).json()
        http.get(made["links"]["self"])
        http.get("/v1/mixes/" + "0" * 32)
        http.get("/nothing/like/it")
        text = http.get("/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples[("ballast_requests_total", "/v1/mixes/{mix_id}", "200", "GET")] == 1
    assert samples[("ballast_requests_total", "/v1/mixes/{mix_id}", "404", "GET")] == 1
    assert samples[("ballast_requests_total", "404", "GET", "none")] == 1
    assert sum(value for key, value in samples.items() if key[0] == "ballast_mixes_total") == 1
    assert made["mix_id"] not in text
    assert "nothing" not in text
    assert "local" not in text


def test_metrics_need_the_admin_scope(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    tokens = [create_key(store, "anna", [scope])[1] for scope in ("mix", "admin")]
    with running(Settings(store=str(tmp_path))) as url:
        answers = [httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}) for token in tokens]
        assert [answer.status_code for answer in answers] == [403, 200]
        assert httpx.get(f"{url}/metrics").status_code == 401


def test_not_ready_when_no_upload_can_be_taken_or_when_stopping(settings: Settings, tmp_path: Path) -> None:
    with running(settings.model_copy(update={"temp_dir": str(tmp_path / "absent")})) as url:
        assert httpx.get(f"{url}/readyz").status_code == 503
    app = create_app(settings)
    app.state.service.stopping = True
    with running(app) as url:
        assert httpx.get(f"{url}/readyz").json()["error"]["code"] == "stopping"


def test_the_demo_store_is_named_when_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--demo"]) == 2
    assert "make demo" in capsys.readouterr().err


def test_a_bare_checkout_knows_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    installed = product_version()
    monkeypatch.setattr(console, "version", absent)
    product_version.cache_clear()
    assert product_version() == installed


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_tell_the_queue_the_waits_and_the_process(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    _, token = create_key(store, "anna", list(SCOPES))
    (tmp_path / "tenants.yaml").write_text("anna: {tier: gold}\n")
    settings = Settings(store=store.base, tenants=str(tmp_path / "tenants.yaml"))
    with running(settings) as url, Client(url, token) as client:
        client.create_mix(task_rows(4), RECIPE)
        client.sql("select 1 as one from corpora")
        client.create_mix(task_rows(5), RECIPE, background=True)
        found = samples(client.metrics())
    assert found["ballast_jobs_active", "mix", "queued"] == 1
    assert found["ballast_jobs_active", "mix", "running"] == found["ballast_jobs_active", "audit", "queued"] == 0
    assert found["ballast_job_queue_oldest_seconds", "mix"] > 0
    assert found["ballast_build_seconds_count", "gold"] == found["ballast_build_wait_seconds_count", "gold"] == 2
    assert found["ballast_statement_seconds_count", "gold"] == 1
    assert found["ballast_build_seconds_sum", "gold"] > found["ballast_build_wait_seconds_sum", "gold"] >= 0
    assert found["process_resident_memory_bytes",] > 10e6
    assert found["process_open_fds",] > 3
    assert not [key for key in found if "anna" in key]


def test_a_worker_offers_metrics_and_health(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    board = Board(store)
    with running(Settings(store=store.base)) as url, Client(url) as client:
        job = client.create_mix(task_rows(5), RECIPE, background=True)
    command = [sys.executable, "-m", "api", "worker", "--store", store.base, "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout is not None
            address = next(line.split()[-1] for line in worker.stdout if line.startswith("metrics and health at"))
            while board.read("local", job["job_id"]).active:
                time.sleep(0.1)
            ready = httpx.get(f"{address}/healthz")
            assert (ready.status_code, ready.json()["status"]) == (200, "ok")
            assert httpx.get(f"{address}/elsewhere").status_code == 404
            found = samples(httpx.get(f"{address}/metrics").text)
            while ("ballast_jobs_ended_total", "done", "mix") not in found:  # counted right after its record
                found = samples(httpx.get(f"{address}/metrics").text)
            assert found["ballast_jobs_ended_total", "done", "mix"] == 1
            assert found["ballast_job_seconds_count", "default", "mix"] == 1
            assert found["ballast_job_wait_seconds_sum", "default", "mix"] > 0
            assert found["process_cpu_seconds_total",] > 0
        finally:
            worker.terminate()
            worker.communicate()
    assert worker.returncode == 0


def test_a_worker_says_which_port_it_cannot_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = scored_store(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["worker", "--store", store.base, "--until-idle", "--metrics-port", port]) == 2
    assert "give another --metrics-port" in capsys.readouterr().err


def test_a_job_starts_when_a_worker_begins(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    with running(Settings(store=store.base)) as url, Client(url) as client:
        job_id = client.create_mix(task_rows(5), RECIPE, background=True)["job_id"]
        queue = open_queue(store, None)
        Worker(store, queue, {"mix": run_mix}).run(until_idle=True)
        queue.close()
    job = Board(store).read("local", job_id)
    (started,) = [event.at for event in job.events if event.kind == "started"]
    assert job.started_at == started > job.created_at
