"""Privacy mode over HTTP: the same mix, and no text of the user's rows in any request."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.routes import mixes
from api.settings import Settings
from api.tenancy.keys import create_key
from curator.client import Client, ServiceError
from curator.errors import BadInputError, BadRowsError, IntegrityError, NotEnoughRowsError
from curator.mix.files import mix_batches, row_lines
from curator.mix.verify import verify
from curator.store.store import Store
from tests.api.serving import (
    RECIPE,
    json_lines,
    running,
    scored_store,
    task_rows,
)

SHA = "0" * 64
ASKED: dict[str, Any] = {"recipe": RECIPE, "n_rows": 50, "sha256": SHA}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("private")
    scored_store(path)
    return path


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with running(Settings(store=str(root), max_task_rows=1_000)) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, retries=0) as found:
        yield found


def with_pool_rows(n_rows: int) -> list[dict[str, Any]]:
    """Task rows of which three are the best conversations of the pool: the client has to leave those out."""
    held = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"kind answer {n}"}]}
        for n in (59, 58, 3)
    ]
    return [*task_rows(n_rows), *held]


@pytest.mark.parametrize("recipe", [RECIPE, {"corpus": "chats", "rows": 7, "strategy": "random", "seed": 3}])
def test_it_arrives_at_the_mix_that_the_service_makes_of_the_rows(
    client: Client, root: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    rows = with_pool_rows(40)
    private = client.mix_private(rows, recipe, store=tmp_path / "own")
    public = client.create_mix(rows, recipe)
    assert (private["mix_id"], private["created"]) == (public["mix_id"], True)
    assert private["manifest"]["rows_sha256"] == public["manifest"]["rows_sha256"]
    found = [
        [line for batch in mix_batches(store, "local", public["mix_id"]) for line in row_lines(batch)]
        for store in (Store(root), Store(tmp_path / "own"))
    ]
    assert found[0] == found[1]
    verify(Store(tmp_path / "own"), "local", private["mix_id"])
    path = tmp_path / "task.jsonl"
    path.write_bytes(json_lines(rows))
    again = client.mix_private(path, recipe, store=tmp_path / "own")
    assert (again["mix_id"], again["created"]) == (public["mix_id"], False)


def test_no_text_of_a_row_reaches_the_service(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    sent: list[tuple[str, bytes]] = []
    send = httpx.HTTPTransport.handle_request

    def captured(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        sent.append((f"{request.method} {request.url} {request.headers}", request.read()))
        return send(transport, request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", captured)
    rows = [
        {**row, "source": "SECRET-SOURCE", "id": "SECRET-ID"} for row in task_rows(20, "SECRET-ANSWER about question")
    ]
    before = sorted(root.rglob("*"))
    client.mix_private(rows, RECIPE, store=tmp_path / "own")
    assert sorted(root.rglob("*")) == before, "nothing is stored"
    ((head, body),) = sent
    assert set(json.loads(body)) == {"recipe", "n_rows", "sha256", "sources_sha256", "spare"}
    text = (head + body.decode()).replace('"no_question"', "")  # a check of the recipe's
    for word in ("SECRET", "question", "assistant"):
        assert word not in text


def test_an_answer_to_other_hashes_is_refused(
    client: Client, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = httpx.post(f"{url}/v1/mixes/private", json=ASKED | {"n_rows": 20}, timeout=60).json()
    assert (other["n_rows"], other["sha256"]) == (20, SHA)
    monkeypatch.setattr(Client, "_json", lambda *_, **__: other)
    with pytest.raises(IntegrityError, match="not this task set"):
        client.mix_private(task_rows(20), RECIPE, store=tmp_path / "own")
    assert not Store(tmp_path / "own").list("mixes")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"sha256": "0" * 63}, 422, "bad_parameters"),
        ({"sources_sha256": "X" * 64}, 422, "bad_parameters"),
        ({"n_rows": 0}, 422, "bad_parameters"),
        ({"rows": []}, 422, "bad_parameters"),
        ({"n_rows": 1_001}, 413, "too_many_rows"),
        ({"recipe": {"corpus": "chats", "speed": 1}}, 422, "bad_recipe"),
        ({"recipe": {"corpus": "absent"}}, 422, "not_found"),
        ({"recipe": {"corpus": "chats", "strategy": "quantile_band"}}, 422, "bad_recipe"),
        ({"recipe": {"corpus": "chats", "rows": 61}}, 422, "not_enough_rows"),
    ],
)
def test_refusals_are_those_of_mixes(url: str, changes: dict[str, Any], status: int, code: str) -> None:
    answer = httpx.post(f"{url}/v1/mixes/private", json=ASKED | changes, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_bodies_are_bounded_json(url: str) -> None:
    link = f"{url}/v1/mixes/private"
    assert httpx.post(link, content=b"{", headers={"Content-Type": "application/json"}, timeout=60).status_code == 400
    assert httpx.post(link, data={"n_rows": "1"}, timeout=60).status_code == 415
    assert httpx.post(link, json=ASKED | {"recipe": {"corpus": "x" * 2**21}}, timeout=60).status_code == 413


def test_offered_rows_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixes, "MAX_OFFERED_ROWS", 20)
    answer = httpx.post(f"{url}/v1/mixes/private", json=ASKED, timeout=60)  # 5 rows and 16 to spare
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_rows")
    assert httpx.post(f"{url}/v1/mixes/private", json=ASKED | {"spare": 15}, timeout=60).status_code == 200


def test_scope_and_quota_are_those_of_mixes(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    tokens = [create_key(store, "anna", [scope])[1] for scope in ("mix", "sql")]
    with running(Settings(store=str(tmp_path), tenant_rows_per_hour=60)) as url:
        link = f"{url}/v1/mixes/private"
        assert httpx.post(link, json=ASKED, timeout=60).status_code == 401
        mix, sql = ({"Authorization": f"Bearer {token}"} for token in tokens)
        assert httpx.post(link, json=ASKED, headers=sql, timeout=60).status_code == 403
        assert httpx.post(link, json=ASKED, headers=mix, timeout=60).status_code == 200
        again = httpx.post(link, json=ASKED, headers=mix, timeout=60)
        assert (again.status_code, again.json()["error"]["code"]) == (429, "quota_used_up")
        assert httpx.post(link, json=ASKED | {"n_rows": 61}, headers=mix, timeout=60).status_code == 413


def test_data_that_cannot_be_mixed_is_refused_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    with pytest.raises(BadRowsError, match="1 of 2 task rows are bad"):
        client.mix_private([*task_rows(1), {"messages": []}], RECIPE, store=tmp_path / "own")
    with pytest.raises(BadInputError, match="no rows"):
        client.mix_private([], RECIPE, store=tmp_path / "own")
    with pytest.raises(ServiceError, match="privacy mode: strategy quantile_band"):
        client.mix_private(task_rows(5), {"corpus": "chats", "strategy": "quantile_band"}, store=tmp_path / "own")


def test_too_few_spare_rows_name_what_to_ask_for(client: Client, tmp_path: Path) -> None:
    recipe = {"corpus": "chats", "rows": 2}
    with pytest.raises(NotEnoughRowsError, match="ask again with spare=6"):
        client.mix_private(with_pool_rows(5), recipe, store=tmp_path / "own", spare=1)
    assert client.mix_private(with_pool_rows(5), recipe, store=tmp_path / "own", spare=6)["created"]
