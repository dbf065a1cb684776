"""Copies of large downloads: made once and whole, sent as files, gone with their mix or when room is needed."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api import downloads as renditions
from api.app import create_app
from api.keys import create_key
from api.settings import Settings
from curator.store.store import Store
from tests.api.serving import (
    form,
    running,
    scored_store,
    task_rows,
)

BIG = 3_000
SPARSE = {"corpus": "chats", "interleave_ratio": 0.01}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renditions, "LEAST_BYTES", 1_000)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    scored_store(tmp_path / "store")
    (tmp_path / "temp").mkdir()
    return Settings(store=str(tmp_path / "store"), temp_dir=str(tmp_path / "temp"))


def copies(settings: Settings) -> list[Path]:
    found = Path(settings.temp_dir or "").glob("ballast-downloads-*/*")
    return sorted(path for path in found if not path.name.startswith("."))


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    with running(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_a_second_download_is_the_first_ones_copy(http: httpx.Client, settings: Settings) -> None:
    made = http.post("/v1/mixes", **form(task_rows(BIG), SPARSE)).json()
    for data_format in ("jsonl", "openai", "arrow"):
        first, second = (http.get(made["links"][data_format]) for _ in "ab")
        assert first.content == second.content
        assert (first.headers["etag"], "content-length" in first.headers) == (second.headers["etag"], False)
        assert int(second.headers["content-length"]) == len(first.content)
        assert second.headers["content-disposition"] == first.headers["content-disposition"]
    assert len(copies(settings)) == 3
    assert http.delete(made["links"]["self"]).status_code == 204
    assert copies(settings) == []
    assert http.get(made["links"]["jsonl"]).status_code == 404


def test_a_download_that_breaks_off_leaves_no_copy(http: httpx.Client, settings: Settings) -> None:
    made = http.post("/v1/mixes", **form(task_rows(BIG, "long " * 400), SPARSE)).json()
    with http.stream("GET", made["links"]["jsonl"]) as answer:
        next(answer.iter_raw())
    whole = http.get(made["links"]["jsonl"]).content
    assert whole.count(b"\n") == made["manifest"]["n_rows"]
    assert http.get(made["links"]["jsonl"]).content == whole


def test_copies_are_no_way_round_the_tenant_or_the_expiry(settings: Settings) -> None:
    store_path = Path(settings.store)
    tokens = [create_key(Store(store_path), name, ["mix"])[1] for name in ("anna", "bert")]
    app = create_app(settings)
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        anna, bert = ({"Authorization": f"Bearer {token}"} for token in tokens)
        link = http.post("/v1/mixes", **form(task_rows(BIG), SPARSE), headers=anna).json()["links"]["jsonl"]
        assert [http.get(link, headers=anna).status_code for _ in "ab"] == [200, 200]
        assert len(copies(settings)) == 1
        assert http.get(link, headers=bert).status_code == 404
        mix_id = link.split("/")[3]
        Store(store_path).delete(f"mixes/anna/{mix_id}")  # by another process
        assert http.get(link, headers=anna).status_code == 404
        app.state.service.tidy()
        assert copies(settings) == []
    assert list(Path(settings.temp_dir or "").iterdir()) == [], "nothing outlives the process"


def test_the_copy_used_longest_ago_makes_room(settings: Settings) -> None:
    with running(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        links = [
            http.post("/v1/mixes", **form(task_rows(BIG, f"set {n}"), SPARSE)).json()["links"]["jsonl"]
            for n in range(3)
        ]
        size = len(http.get(links[0]).content)
    bounded = settings.model_copy(update={"download_cache_bytes": int(2.5 * size)})
    with running(bounded) as url, httpx.Client(base_url=url, timeout=60) as http:
        for link in (links[0], links[1], links[0], links[2]):
            http.get(link)
        kept = {path.name.split("~")[1] for path in copies(settings)}
        assert kept == {links[0].split("/")[3], links[2].split("/")[3]}
    with running(settings.model_copy(update={"download_cache_bytes": 0})) as url:
        httpx.get(url + links[0])
        assert copies(settings) == []
