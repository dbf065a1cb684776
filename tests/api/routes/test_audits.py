"""Audits over HTTP without a worker's models: what is taken, counted and kept under the tenant, and what is not."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.jobs.board import Board
from api.settings import Settings
from api.tenancy.keys import create_key
from curator.store.store import Store
from tests.api.audited import end_audit
from tests.api.serving import (
    form,
    json_lines,
    running,
    scored_store,
    task_rows,
)

ASKED = {"corpus": "chats"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return scored_store(tmp_path)


@pytest.fixture
def http(store: Store, tmp_path: Path) -> Iterator[httpx.Client]:
    settings = Settings(store=str(tmp_path), max_audit_rows=50, tenant_audits_per_hour=3, max_page_rows=4)
    with running(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def post(http: httpx.Client, n_rows: int = 5, **headers: str) -> httpx.Response:
    return http.post("/v1/audits", json={"rows": task_rows(n_rows), "audit": ASKED}, headers=headers)


def test_an_audit_is_a_job_and_its_rows_lie_under_the_tenant(http: httpx.Client, store: Store) -> None:
    answer = post(http)
    assert (answer.status_code, answer.json()["kind"]) == (202, "audit")
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['job_id']}"
    folder = f"jobs/local/{answer.json()['job_id']}"
    assert store.list(folder) == ["input.parquet", "job.json"]
    assert http.delete(answer.json()["links"]["self"]).json()["state"] == "cancelled"
    assert store.list(folder) == ["cancel", "job.json"], "the rows are gone with the job's end"


def test_a_file_and_its_options_in_yaml(http: httpx.Client) -> None:
    file = {"file": ("rows.jsonl", json_lines(task_rows(4)))}
    made = http.post("/v1/audits", files=file, data={"audit": "corpus: chats\nscore: gap_rel\n"})
    assert made.status_code == 202
    recipe = http.post("/v1/audits", **form(task_rows(4)))
    assert (recipe.status_code, recipe.json()["error"]["code"]) == (422, "unknown_part")


@pytest.mark.parametrize(
    ("audit", "code"),
    [
        ({}, "bad_input"),
        ({"corpus": "nowhere"}, "not_found"),
        ({"corpus": "chats", "aligned": "nobody"}, "not_found"),
        ({"corpus": "chats", "hold_out": ["nothing"]}, "not_found"),
        ({"corpus": "chats", "seed": 10**30}, "bad_input"),
        ({"corpus": "chats", "speed": 1}, "bad_input"),
    ],
)
def test_options_that_cannot_be_met_are_told_before_a_job_is_made(
    http: httpx.Client, store: Store, audit: dict[str, object], code: str
) -> None:
    answer = http.post("/v1/audits", json={"rows": task_rows(3), "audit": audit})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert Board(store).active() == []


def test_audits_are_counted_by_the_hour_and_bounded_by_rows(http: httpx.Client) -> None:
    too_many = post(http, 51)
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (413, "too_many_rows")
    assert [post(http).status_code for _ in range(4)] == [202, 202, 202, 429]


def test_the_same_key_gives_the_same_audit(http: httpx.Client) -> None:
    first, again = (post(http, 5, **{"Idempotency-Key": "a"}) for _ in "ab")
    assert again.json() == first.json()
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
    assert post(http, 6, **{"Idempotency-Key": "a"}).json()["error"]["code"] == "idempotency_key_reused"


def test_what_an_audit_found_is_read_by_pages(http: httpx.Client, store: Store) -> None:
    job_id = post(http).json()["job_id"]
    early = http.get(f"/v1/audits/{job_id}")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "job_not_done")
    result = end_audit(store, "local", job_id)
    links = http.get(f"/v1/jobs/{job_id}").json()["links"]
    assert http.get(links["result"]).json() == result
    pages = [http.get(links["rows"], params={"after": after}).json() for after in (-1, 3, 5)]
    assert [[row["ordinal"] for row in page["rows"]] for page in pages] == [[0, 1, 2, 3], [4, 5], []]
    assert [page["next_after"] for page in pages] == [3, None, None]
    assert http.delete(links["self"]).status_code == 204
    assert http.get(links["result"]).status_code == 404


def test_audits_need_their_own_scope(tmp_path: Path, store: Store) -> None:
    tokens = {scope: create_key(store, "anna", [scope])[1] for scope in ("mix", "sql", "audit")}
    with running(Settings(store=str(tmp_path))) as url, httpx.Client(base_url=url, timeout=30) as http:
        answers = {scope: post(http, 3, Authorization=f"Bearer {token}").status_code for scope, token in tokens.items()}
        assert answers == {"mix": 403, "sql": 403, "audit": 202}
        assert post(http).status_code == 401
        jobs = {
            scope: http.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"}) for scope, token in tokens.items()
        }
        assert {scope: answer.status_code for scope, answer in jobs.items()} == {"mix": 200, "sql": 200, "audit": 200}
        assert [len(jobs[scope].json()["jobs"]) for scope in ("mix", "sql", "audit")] == [0, 0, 1]


def test_an_audit_that_is_refused_is_not_counted(tmp_path: Path, store: Store) -> None:
    settings = Settings(store=str(tmp_path), tenant_audits_per_hour=2, tenant_jobs=1)
    with running(settings) as url, httpx.Client(base_url=url, timeout=30) as http:
        first = post(http)
        assert [post(http).json()["error"]["code"] for _ in range(4)] == ["too_many_jobs"] * 4
        assert http.delete(first.json()["links"]["self"]).status_code == 200
        second = post(http)
        assert second.status_code == 202
        assert http.delete(second.json()["links"]["self"]).status_code == 200
        assert post(http).json()["error"]["code"] == "quota_used_up"
