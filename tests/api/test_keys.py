"""Tenants: keys, scopes and what one tenant can learn of another."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.__main__ import main
from api.settings import Settings
from api.tenancy import auth
from api.tenancy.auth import is_loopback
from api.tenancy.keys import (
    create_key,
    list_keys,
    opens,
    revoke_key,
    split_token,
)
from curator.errors import BadInputError, MissingError
from curator.store.store import Store
from tests.api.serving import (
    form,
    running,
    scored_store,
    task_rows,
)

ABSENT = "0" * 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return scored_store(tmp_path_factory.mktemp("tenants"))


@pytest.fixture(scope="module")
def tokens(store: Store) -> dict[str, str]:
    found = {name: create_key(store, name, ["mix", "sql"])[1] for name in ("anna", "bert")}
    found["narrow"] = create_key(store, "anna", ["sql"])[1]
    found["admin"] = create_key(store, "root", ["admin"])[1]
    found["expired"] = create_key(store, "anna", ["mix"], expires_days=1e-9)[1]
    key, token = create_key(store, "anna", ["mix"])
    revoke_key(store, key.key_id)
    return found | {"revoked": token}


@pytest.fixture(scope="module")
def url(store: Store, tokens: dict[str, str]) -> Iterator[str]:
    with running(Settings(store=store.url(""), max_page_rows=20)) as address:
        yield address


def as_tenant(url: str, token: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def test_only_a_hash_of_the_secret_is_stored(store: Store, tokens: dict[str, str]) -> None:
    stored = "".join(path.read_text() for path in Path(store.url("keys")).iterdir())
    for token in tokens.values():
        named = split_token(token)
        assert named is not None
        assert named[0] in stored
        assert named[1] not in stored


def test_keys_open_only_with_their_own_secret_and_in_force(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    key, token = create_key(store, "anna", ["mix"])
    other = create_key(store, "anna", ["mix"])[1]
    secrets = [(split_token(item) or ("", ""))[1] for item in (token, other)]
    assert [opens(key, secret) for secret in secrets] == [True, False]
    assert not opens(None, secrets[0])
    assert not opens(key.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)}), secrets[0])
    assert not opens(revoke_key(store, key.key_id), secrets[0])


@pytest.mark.parametrize(("tenant", "scopes"), [("../x", ["mix"]), ("Anna", ["mix"]), ("anna", ["all"]), ("anna", [])])
def test_what_can_be_no_key_is_refused(tmp_path: Path, tenant: str, scopes: list[str]) -> None:
    with pytest.raises(BadInputError, match=r"tenant name|scope"):
        create_key(Store(tmp_path).open(), tenant, scopes)


@pytest.mark.parametrize("key_id", ["../store", "x", "0" * 16])
def test_revoking_what_is_not_there(tmp_path: Path, key_id: str) -> None:
    with pytest.raises(MissingError, match="keys list"):
        revoke_key(Store(tmp_path).open(), key_id)


@pytest.mark.parametrize("name", ["none", "garbage", "expired", "revoked", "unknown", "other scheme"])
def test_every_unfit_key_has_one_answer(url: str, tokens: dict[str, str], name: str) -> None:
    token = f"ballast_{'0' * 16}_{'0' * 64}" if name == "unknown" else tokens.get(name, "x")
    scheme = "Basic" if name == "other scheme" else "Bearer"
    headers = {} if name == "none" else {"Authorization": f"{scheme} {token}"}
    for method, path in (("GET", "/v1/mixes"), ("GET", f"/v1/mixes/{ABSENT}"), ("POST", "/v1/mixes")):
        answer = httpx.request(method, f"{url}{path}", headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "unauthorized"
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_key_without_the_scope_is_told_which(url: str, tokens: dict[str, str]) -> None:
    with as_tenant(url, tokens["narrow"]) as http:
        answer = http.get("/v1/mixes")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")
    assert "`mix`" in answer.json()["error"]["message"]


def test_a_revoked_key_stops_working_while_the_service_runs(store: Store, url: str) -> None:
    key, token = create_key(store, "carl", ["mix"])
    with as_tenant(url, token) as http:
        assert http.get("/v1/mixes").status_code == 200
        revoke_key(store, key.key_id)
        deadline = datetime.now(UTC) + timedelta(seconds=10)
        while http.get("/v1/mixes").status_code == 200:
            assert datetime.now(UTC) < deadline


def test_the_first_key_closes_a_running_open_service(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    with running(Settings(store=str(tmp_path))) as address:
        assert httpx.get(f"{address}/v1/corpora").status_code == 200
        key, _ = create_key(store, "anna", ["mix"])
        assert httpx.get(f"{address}/v1/corpora").status_code == 401
        revoke_key(store, key.key_id)
        assert httpx.get(f"{address}/v1/corpora").status_code == 401, "revoking the last key opens nothing"


def test_without_keys_others_reach_nothing_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored_store(tmp_path)
    assert main(["--store", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "--open" in capsys.readouterr().err
    with running(Settings(store=str(tmp_path), host="0.0.0.0")) as address:
        assert httpx.get(f"{address}/v1/corpora").status_code == 401
    with running(Settings(store=str(tmp_path), host="0.0.0.0", open=True)) as address:
        assert httpx.get(f"{address}/v1/corpora").status_code == 200


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_loopback(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def _answer(http: httpx.Client, method: str, link: str, headers: dict[str, str]) -> tuple[Any, ...]:
    answer = http.request(method, link, headers=headers)
    kept = {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
    return answer.status_code, kept, answer.content


def test_another_tenants_mix_is_answered_like_one_that_does_not_exist(url: str, tokens: dict[str, str]) -> None:
    with as_tenant(url, tokens["anna"]) as anna, as_tenant(url, tokens["bert"]) as bert:
        made = anna.post("/v1/mixes", **form(task_rows(9, "of anna"))).json()
        mix_id, paths = made["mix_id"], httpx.get(f"{url}/openapi.json").json()["paths"]
        tags = [anna.get(link).headers.get("etag", '"x"') for link in made["links"].values()]
        probed = 0
        for path, operations in paths.items():
            if "{mix_id}" not in path:
                continue
            for method in (name.upper() for name in operations):
                for query in ("", "?format=parquet", "?format=arrow", "?limit=5&after=2", "?limit=0"):
                    for headers in ({}, {"If-None-Match": "*"}, {"If-None-Match": tags[0]}, {"Range": "bytes=0-1"}):
                        links = (path.format(mix_id=item) + query for item in (mix_id, ABSENT))
                        theirs, absent = (_answer(bert, method, link, dict(headers)) for link in links)
                        assert theirs == absent, f"{method} {path}{query} {headers}"
                        probed += 1
        assert probed >= 80
        assert bert.get("/v1/mixes").json() == {"mixes": [], "next_after": None}
        assert bert.get("/v1/mixes", params={"after": mix_id[:-1]}).json()["mixes"] == []
        assert anna.get(made["links"]["self"]).status_code == 200, "nothing of it was deleted"
        own = bert.post("/v1/mixes", **form(task_rows(9, "of anna")))
        assert (own.status_code, own.json()["mix_id"]) == (201, mix_id), "not shared, and not revealed"
        assert bert.delete(f"/v1/mixes/{mix_id}").status_code == 204
        assert anna.get(made["links"]["self"]).status_code == 200


def test_the_command_creates_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path).open()
    at = ["--store", str(tmp_path)]
    assert main(["keys", "list", *at]) == 0
    assert "no keys" in capsys.readouterr().out
    made = ["keys", "create", *at, "--tenant", "acme", "--scopes", "mix,sql", "--expires-days", "9", "--json"]
    assert main(made) == 0
    document = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"ballast_[0-9a-f]{16}_[0-9a-f]{64}", document["token"])
    assert "sha256" not in document
    assert main(["keys", "list", *at]) == 0
    assert re.search(r"acme +mix,sql +active", capsys.readouterr().out)
    assert main(["keys", "revoke", document["key_id"], *at]) == 0
    assert "revoked" in capsys.readouterr().out
    assert [key.status(datetime.now(UTC)) for key in list_keys(Store(tmp_path))[0]] == ["revoked"]
    assert main(["keys", "create", *at, "--tenant", "No Name"]) == 2
    assert "tenant name" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"key_id": "x"}', b"\xff"])
def test_a_damaged_key_is_listed_and_can_be_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    store = scored_store(tmp_path)
    key, token = create_key(store, "anna", ["mix"])
    whole, _ = create_key(store, "bert", ["mix"])
    store.write_bytes(f"keys/{key.key_id}.json", content)
    store.write_bytes("keys/notes.json", b"{}")
    with running(Settings(store=str(tmp_path))) as url, as_tenant(url, token) as http:
        assert http.get("/v1/mixes").status_code == 401  # and not an error of ours
    at = ["--store", str(tmp_path)]
    capsys.readouterr()
    assert main(["keys", "list", *at, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert ([item["key_id"] for item in listed["keys"]], listed["damaged"]) == ([whole.key_id], [key.key_id])
    assert main(["keys", "list", *at]) == 0
    assert re.search(f"{key.key_id} .*damaged", capsys.readouterr().out)
    assert main(["keys", "revoke", key.key_id, *at]) == 0
    assert "was damaged" in capsys.readouterr().out
    assert main(["keys", "list", *at, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {item["key_id"]: item["status"] for item in listed["keys"]}[key.key_id] == "revoked"
    assert listed["damaged"] == []
    with running(Settings(store=str(tmp_path))) as url, as_tenant(url, token) as http:
        assert http.get("/v1/mixes").status_code == 401


def test_a_key_without_a_scope_is_told_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="name one or more of mix, sql"):
        create_key(Store(tmp_path).open(), "anna", [])


def test_unknown_keys_are_asked_of_the_store_rarely_and_good_ones_always_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = scored_store(tmp_path)
    good = [create_key(store, name, ["mix"])[1] for name in ("anna", "bert")]
    monkeypatch.setattr(auth, "CACHE_S", 60.0)  # on a busy machine two seconds pass between two requests
    asked: list[str] = []
    found = auth.find_key
    monkeypatch.setattr(auth, "find_key", lambda store, key_id: asked.append(key_id) or found(store, key_id))

    def status(token: str) -> int:
        return httpx.get(f"{url}/v1/mixes", headers={"Authorization": f"Bearer {token}"}).status_code

    guesses = [f"ballast_{number:016x}_{0:064x}" for number in range(8)]
    with running(Settings(store=str(tmp_path), address_keys_per_minute=5)) as url:
        assert status(good[0]) == 200
        assert [status(guesses[0]) for _ in range(6)] == [401] * 6
        assert len(asked) == 2, "an absent key is not looked up again and again"
        assert [status(guess) for guess in guesses[1:]] == [401] * 4 + [429] * 3
        assert len(asked) == 6
        assert status(good[0]) == 200
        assert httpx.get(f"{url}/v1/mixes").status_code == 401
