"""Metrics, readiness, the pinned OpenAPI document and the demo flag."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.__main__ import main
from api.app import create_app
from api.keys import create_key
from api.settings import Settings
from curator import console
from curator.console import product_version
from tests.api.openapi import GOLDEN, document
from tests.api.serving import (
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
    assert product_version() == installed
