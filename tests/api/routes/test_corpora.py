import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.routes import corpora
from api.settings import Settings
from api.tenancy.keys import create_key
from api.tenancy.quotas import TENANT_LINE
from curator.store.store import Store
from tests.api.serving import N_POOL, running, scored_store
from tests.gap_stores import write_corpus, write_scorer


def test_corpora_are_listed_with_their_revision(http: httpx.Client) -> None:
    (corpus,) = http.get("/v1/corpora").json()["corpora"]
    assert (corpus["corpus"], corpus["n_examples"], len(corpus["revision"])) == ("chats", N_POOL, 32)


def test_a_corpus_shows_its_scorers(http: httpx.Client) -> None:
    document = http.get("/v1/corpora/chats").json()
    assert {item["role"]: item["n_scored"] for item in document["scorers"]} == {"aligned": 60, "misaligned": 60}


def test_the_gap_is_what_the_losses_say(http: httpx.Client) -> None:
    answer = http.get("/v1/corpora/chats/gap", params={"score": "gap_abs", "bins": 4}).json()
    (quantiles,) = answer["quantiles"]
    # Losses were written as 1.0 and 1.0 + place / 100 nats per token.
    assert (quantiles["minimum"], quantiles["median"], quantiles["maximum"]) == pytest.approx((0, 0.295, 0.59))
    assert sum(item["n_rows"] for item in answer["histogram"]) == N_POOL
    assert len(answer["histogram"]) == 4
    relative = http.get("/v1/corpora/chats/gap", params={"eps": 0.0}).json()
    assert relative["quantiles"][0]["maximum"] == pytest.approx(0.59)
    assert http.get("/v1/corpora/chats/gap").json()["quantiles"][0]["maximum"] == pytest.approx(0.295)


def test_a_hold_out_that_leaves_no_model_is_refused(http: httpx.Client) -> None:
    answer = http.get("/v1/corpora/chats/gap", params={"hold_out": ["finance"]})
    assert answer.status_code == 422
    assert "hold_out [finance] leaves no misaligned scorer" in answer.json()["error"]["message"]


@pytest.mark.parametrize("query", ["score=gap_nothing", "eps=-1", "eps=nan", "bins=0", "bins=100000"])
def test_parameters_out_of_range(http: httpx.Client, query: str) -> None:
    assert http.get(f"/v1/corpora/chats/gap?{query}").status_code == 422


def test_liveness_readiness_and_the_offline_page(http: httpx.Client) -> None:
    assert http.get("/healthz").json()["status"] == "ok"
    assert http.get("/readyz").json() == {"status": "ready"}
    page = http.get("/docs").text
    assert "POST /v1/mixes" in page
    assert "http" not in page.replace("over HTTP", ""), "the page loads nothing from elsewhere"


def test_every_operation_is_described_and_declares_the_error_body(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], f"{method} {path}"
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}, f"{method} {path} {status}"


@contextmanager
def sent_at_once(url: str, token: str, n_requests: int) -> Iterator[list[int]]:
    """Requests of one tenant for figures that nobody requested before; their statuses once the block is over."""
    statuses: list[int] = []
    headers = {"Authorization": f"Bearer {token}"}

    def ask(number: int) -> None:
        link = f"{url}/v1/corpora/chats/gap?eps={number + 1}.5"
        statuses.append(httpx.get(link, headers=headers, timeout=120).status_code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(n_requests)]
    for thread in threads:
        thread.start()
    yield statuses
    for thread in threads:
        thread.join()


def test_one_tenants_slow_figures_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = scored_store(tmp_path)
    anna, bert = (create_key(store, name, ["mix"])[1] for name in ("anna", "bert"))
    go_on, run_named = threading.Event(), corpora.run_named

    def slowly(connection: Any, name: str, given: dict[str, Any]) -> Any:
        if given.get("eps", 0.0) > 1.0:
            assert go_on.wait(120)
        return run_named(connection, name, given)

    monkeypatch.setattr(corpora, "run_named", slowly)
    with running(Settings(store=str(tmp_path))) as url:
        with sent_at_once(url, anna, 60) as statuses:  # more than the service has threads
            try:
                while len(statuses) < 60 - TENANT_LINE:
                    assert not go_on.wait(0.05)
                headers = {"Authorization": f"Bearer {bert}"}
                for path in ("/v1/mixes", "/v1/corpora", "/v1/corpora/chats", "/v1/corpora/chats/gap"):
                    assert httpx.get(url + path, headers=headers, timeout=60).status_code == 200
            finally:
                go_on.set()
        assert sorted(statuses) == [200] * TENANT_LINE + [429] * (60 - TENANT_LINE)


def test_figures_are_kept_until_what_they_are_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, run_named, asked = scored_store(tmp_path), corpora.run_named, list[str]()

    def counted(connection: Any, name: str, given: dict[str, Any]) -> Any:
        asked.append(name)
        assert connection.execute("select current_setting('threads')").fetchone() == (1,)
        assert connection.execute("select current_setting('memory_limit')").fetchone() != ("",)
        return run_named(connection, name, given)

    monkeypatch.setattr(corpora, "run_named", counted)
    with running(Settings(store=str(tmp_path))) as url, httpx.Client(base_url=url, timeout=60) as http:
        first, again = (http.get("/v1/corpora/chats").json() for _ in "ab")
        assert (first, len(asked)) == (again, 1)
        http.get("/v1/corpora/chats/gap", params={"bins": 3})
        assert (http.get("/v1/corpora/chats/gap", params={"bins": 4}).status_code, len(asked)) == (200, 5)
        ids = store.read_table(next(iter(corpora.read_corpus(store, "chats").parts)), ["example_id"])
        losses = dict.fromkeys(ids["example_id"].to_pylist(), (20.0, 10))
        write_scorer(store, "chats", "other", "misaligned", losses, domain="legal")
        assert len(http.get("/v1/corpora/chats").json()["scorers"]) == 3


def test_a_corpus_of_any_name_answers_head(tmp_path: Path) -> None:
    write_corpus(Store(tmp_path).open(), "data", ["an answer"])
    with running(Settings(store=str(tmp_path))) as url:
        whole, head = httpx.get(f"{url}/v1/corpora/data"), httpx.head(f"{url}/v1/corpora/data")
        assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
