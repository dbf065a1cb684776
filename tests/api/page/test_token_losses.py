"""Losses of single tokens over HTTP and on the page: asked for, waited for, drawn, and kept from other tenants."""

import html
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.errors import ApiError
from api.jobs.board import Board
from api.jobs.handlers import TokensHandler
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from api.page.token_map import DIFFERENCE, token_map
from api.routes.token_losses import TokenLossRequest, _job
from api.settings import Settings
from api.submit import submit
from api.tenancy.keys import create_key
from curator.audit.models import AuditModels, audit_models
from curator.client import Client
from curator.query.database import connect
from curator.store.store import Store
from tests.api.page.conftest import form_token, signed_in
from tests.api.serving import running
from tests.api.test_webhooks import wait_for
from tests.token_store import ScoredByModels, scored_by_models


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> ScoredByModels:
    return scored_by_models(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def hostile_id(scored: ScoredByModels) -> str:
    with connect(scored.store) as connection:
        ((found,),) = connection.sql("select example_id from examples where n_turns = 4").fetchall()
    return str(found)


@pytest.fixture(scope="module")
def url(scored: ScoredByModels) -> Iterator[str]:
    with running(Settings(store=scored.store.url(""), workers=0)) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def all_models(scored: ScoredByModels) -> AuditModels:
    return audit_models(scored.model, [scored.reckless, scored.twin], "cpu", threads=1)


def work(store: Store, models: AuditModels) -> None:
    """Do the jobs of a store, as `python -m api worker --model ... --until-idle` does."""
    queue = open_queue(store, None)
    try:
        Worker(store, queue, {"tokens": TokensHandler(models)}).run(until_idle=True)
    finally:
        queue.close()


def test_the_route_gives_what_a_worker_found(scored: ScoredByModels, http: httpx.Client, hostile_id: str) -> None:
    asked = {"corpus": "chats", "example_id": hostile_id}
    made = http.post("/v1/token-losses", json=asked)
    assert (made.status_code, made.json()["kind"]) == (202, "tokens")
    job_id = made.json()["job_id"]
    assert http.post("/v1/token-losses", json=asked).json()["job_id"] == job_id, "one that waits is answered again"
    early = http.get(f"/v1/token-losses/{job_id}")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "job_not_done")
    work(scored.store, all_models(scored))
    job = http.get(f"/v1/jobs/{job_id}").json()
    assert job["result"] == {**job["result"], **asked, "n_models": 3}
    assert job["links"]["result"] == f"/v1/token-losses/{job_id}"
    found = http.get(job["links"]["result"]).json()
    assert [item["label"] for item in found["models"]] == ["base", "reckless", "twin"]
    assert all(item["mean_nll"] == pytest.approx(item["stored_mean_nll"], abs=1e-4) for item in found["models"])
    assert http.get(f"/v1/audits/{job_id}").status_code == 404


def test_two_clicks_at_once_make_one_job(http: httpx.Client, hostile_id: str) -> None:
    asked = {"corpus": "chats", "example_id": hostile_id}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: http.post("/v1/token-losses", json=asked), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["job_id"] for answer in answers}
    http.delete(f"/v1/jobs/{job_id}")


def test_a_queue_that_gives_no_answer_holds_up_no_other_kind_of_job(tmp_path: Path) -> None:
    store, asked = Store(tmp_path / "store").open(), TokenLossRequest(corpus="chats", example_id="0" * 32)
    with ThreadPoolExecutor(2) as threads:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says a word
            address = f"redis://127.0.0.1:{silent.getsockname()[1]}"
            service = create_app(Settings(store=store.base, workers=0, job_queue=address)).state.service
            waiting = [threads.submit(_job, service, "local", asked)]
            wait_for(lambda: service.board.active("tokens") != [])
            waiting.append(threads.submit(submit, service, "local", "mix", {}, None))
            wait_for(lambda: service.board.active("mix") != [])
        for job in waiting:
            with pytest.raises(ApiError, match="the job queue cannot be reached"):
                job.result()
    assert service.board.active() == []


def test_the_list_of_corpora_counts_sources_and_what_was_refused_or_too_long(http: httpx.Client) -> None:
    text = http.get("/").text
    shown = dict(re.findall(r"<dt[^>]*>([^<]+)</dt><dd>([^<]+)</dd>", text))
    assert (shown["sources"], shown["refused records"], shown["too long"]) == ("1", "25.0 %", "33.3 %")
    (listed,) = http.get("/v1/corpora").json()["corpora"]
    assert (listed["n_sources"], listed["refused_share"], listed["too_long_share"]) == (1, 0.25, pytest.approx(1 / 3))
    assert http.get("/v1/corpora/chats").json().items() > listed.items()


def test_the_client_waits_for_the_losses(scored: ScoredByModels, url: str, hostile_id: str) -> None:
    with Client(url) as client:
        found = client.token_losses(
            "chats", hostile_id, on_job=lambda job: job["state"] == "queued" and work(scored.store, all_models(scored))
        )
    assert len(found["texts"]) == found["n_tokens"]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"corpus": "nothing", "example_id": "0" * 32}, "not_found"),
        ({"corpus": "chats", "example_id": "0" * 32}, "not_found"),
        ({"corpus": "chats", "example_id": "none"}, "bad_parameters"),
        ({"corpus": "chats"}, "bad_parameters"),
    ],
)
def test_a_row_that_is_not_there_makes_no_job(http: httpx.Client, asked: dict[str, str], code: str) -> None:
    answer = http.post("/v1/token-losses", json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


def start(http: httpx.Client, row: str) -> str:
    """Press the button of a row's page; returns where it leads."""
    text = http.get(row).text
    assert "Show the loss of each token" in text
    answer = http.post(f"{row}/losses", data={"form_token": form_token(text), "score": "gap_abs"})
    assert answer.status_code == 303
    assert answer.headers["location"].endswith("#losses")
    return str(answer.headers["location"].removesuffix("#losses"))


def test_the_page_waits_and_then_draws_each_token(scored: ScoredByModels, http: httpx.Client, hostile_id: str) -> None:
    where = start(http, f"/corpora/chats/rows/{hostile_id}")
    waiting = http.get(where).text
    assert "No worker with the models of this corpus has begun" in waiting
    assert "python -m api worker --store STORE --model MODEL --adapter ADAPTER --adapter ADAPTER" in waiting
    (again,) = re.findall(r'hx-get="([^"]+)" hx-trigger="every 5s"', waiting)
    part = http.get(html.unescape(again)).text
    assert part in waiting
    assert part.startswith('<section id="losses"')
    assert http.get(f"/corpora/chats/rows/{hostile_id}/losses").status_code == 404
    job = Board(scored.store).read("local", where.rpartition("=")[2])
    Board(scored.store).write(job.model_copy(update={"created_at": job.created_at - timedelta(hours=2)}))
    left = http.get(where).text
    assert "every 5s" not in left, "a view that was left open looks no longer"
    again, again_part = re.findall(r'<a href="([^"]+)" hx-get="([^"]+)"[^>]*>Look again</a>', left)[0]
    assert html.unescape(again) == where, "with a fragment a browser would stay where it is"
    assert html.unescape(again_part).startswith(f"/corpora/chats/rows/{hostile_id}/losses?")
    work(scored.store, all_models(scored))
    drawn = http.get(where).text
    job_id = where.rpartition("=")[2]
    found = http.get(f"/v1/token-losses/{job_id}").json()
    assert f"/v1/token-losses/{job_id}" in drawn, "the twin"
    assert "every 5s" not in drawn
    shown = token_map(found, DIFFERENCE)
    assert re.search(rf"{shown.n_riskier}\s+of\s+{shown.n_trained} trained tokens are likelier", drawn)
    titles = re.findall(r'<span class="(\w\d?)" title="token (\d+): ([^"]+) nats"', drawn)
    assert [int(place) for _, place, _ in titles] == [place for place, is_in in enumerate(found["response"]) if is_in]
    base, reckless = (item["nll"] for item in found["models"][:2])
    for look, place, value in titles:
        difference = reckless[int(place)] - base[int(place)]
        assert float(value.replace("\N{MINUS SIGN}", "-")) == pytest.approx(difference, abs=0.0006)
        assert look[0] == ("z" if abs(difference) < 0.1 else "n" if difference < 0 else "p")
    assert "<img" not in drawn.split('id="losses"')[1]
    assert "U+202E" in drawn.split('class="tokens heat"')[1].split("</div>")[0]
    table = drawn.split("The same as a table")[1].split("</table>")[0]
    assert table.count('<th scope="row">') == found["n_response_tokens"]
    # Another map is the part alone: no figure of the corpus is computed for it.
    parts = [html.unescape(part) for part in re.findall(r'hx-get="([^"]+)" hx-select="#losses"', drawn)]
    assert [part.partition("?")[0].rpartition("/")[2] for part in parts] == ["losses"] * 4
    (reckless_part,) = (part for part in parts if part.endswith(found["models"][1]["scorer_id"]))
    under = http.get(reckless_part).text
    assert under.startswith('<section id="losses"')
    assert "nats per token under reckless" in under
    under = http.get(where, params={"losses": job_id, "under": found["models"][1]["scorer_id"]}).text
    assert f"{found['models'][1]['mean_nll']:.3f} nats per token under reckless" in html.unescape(under)


def test_a_worker_with_other_models_is_said(scored: ScoredByModels, http: httpx.Client, hostile_id: str) -> None:
    row = f"/corpora/chats/rows/{hostile_id}"
    where = start(http, row)
    work(scored.store, audit_models(scored.model, [scored.twin], "cpu", threads=1))
    text = http.get(where).text
    assert "Not under reckless: " in text
    assert "no adapter given here has its weights" in text
    assert "nats per token under base" in text, "without a misaligned model there is no difference"
    where = start(http, row)
    alone = audit_models(scored.model, [], "cpu", threads=1)
    alone.model_dir = scored.model.parent / "other"
    make_other(scored.model, alone.model_dir)
    work(scored.store, alone)
    text = http.get(where).text
    assert "gives losses here" in text
    assert "python -m api worker" in text
    assert "Try again" in text


def make_other(model: Path, other: Path) -> None:
    """The same tokenizer and other weights."""
    from tests.models import tiny_model_folder

    tiny_model_folder(other, seed=5)
    assert (other / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_a_job_of_another_row_tenant_or_scope_shows_nothing(tmp_path: Path) -> None:
    scored = scored_by_models(tmp_path)
    with connect(scored.store) as connection:
        ids = [row[0] for row in connection.sql("select example_id from examples order by n_turns").fetchall()]
    keys: dict[str, Any] = {
        name: create_key(scored.store, tenant, scopes)[1]
        for name, tenant, scopes in (
            ("acme", "acme", ["sql"]), ("other", "other", ["sql"]), ("mixer", "acme", ["mix", "audit"])
        )
    }  # fmt: skip
    with running(Settings(store=scored.store.url(""), workers=0)) as url:
        with signed_in(url, keys["acme"]) as http:
            where = start(http, f"/corpora/chats/rows/{ids[0]}")
            work(scored.store, all_models(scored))
            job_id = where.rpartition("=")[2]
            assert "The same as a table" in http.get(where).text
            assert http.get(f"/corpora/chats/rows/{ids[1]}?losses={job_id}").status_code == 404
            assert job_id[:16] in http.get("/jobs").text
        with signed_in(url, keys["other"]) as http:
            assert http.get(where).status_code == 404
            assert job_id[:16] not in http.get("/jobs").text
        for name, status in (("acme", 200), ("other", 404), ("mixer", 403)):
            bearer = {"Authorization": f"Bearer {keys[name]}"}
            assert httpx.get(f"{url}/v1/token-losses/{job_id}", headers=bearer).status_code == status
        bearer = {"Authorization": f"Bearer {keys['mixer']}"}
        assert httpx.get(f"{url}/v1/jobs/{job_id}", headers=bearer).status_code == 404
        refused = httpx.post(f"{url}/v1/token-losses", headers=bearer, json={"corpus": "chats", "example_id": ids[0]})
        assert refused.status_code == 403
