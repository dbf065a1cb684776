"""Every refusal has the one body, whatever refused: our code, validation, the router or a failure."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from api.app import create_app
from api.errors import error_body
from api.settings import Settings
from api.telemetry import LOGGER, JsonFormatter
from api.tenancy.keys import create_key
from curator.console import console_started
from tests.api.serving import (
    form,
    running,
    scored_store,
    task_rows,
)

ABSENT = "0" * 32
# They read nothing and take nothing that could be wrong, but for a key.
NEVER_REFUSED = {("GET", "/v1/queries"), ("GET", "/metrics"), ("GET", "/v1/policy"), ("GET", "/v1/reports")}
# For each route of the OpenAPI document: a request that it must refuse, and how.
REFUSALS: list[tuple[str, str, dict[str, Any], int, str]] = [
    (
        "POST",
        "/v1/mixes",
        {"content": b"x", "headers": {"Content-Type": "text/plain"}},
        415,
        "unsupported_content_type",
    ),
    (
        "POST",
        "/v1/mixes/preview",
        {"content": b"x", "headers": {"Content-Type": "text/plain"}},
        415,
        "unsupported_content_type",
    ),
    (
        "POST",
        "/v1/checks",
        {"content": b"x", "headers": {"Content-Type": "text/plain"}},
        415,
        "unsupported_content_type",
    ),
    ("POST", "/v1/mixes/private", {"json": {"n_rows": -1}}, 422, "bad_parameters"),
    ("GET", "/v1/mixes", {"params": {"limit": 0}}, 422, "bad_parameters"),
    ("GET", "/v1/mixes/{mix_id}", {}, 404, "not_found"),
    ("DELETE", "/v1/mixes/{mix_id}", {}, 404, "not_found"),
    ("GET", "/v1/mixes/{mix_id}/signature", {}, 404, "not_found"),
    ("GET", "/v1/usage", {"params": {"since": "yesterday"}}, 422, "bad_parameters"),
    ("GET", "/v1/usage/totals", {"params": {"since": "yesterday"}}, 422, "bad_parameters"),
    ("GET", "/v1/mixes/{mix_id}/rows", {}, 404, "not_found"),
    ("GET", "/v1/mixes/{mix_id}/data", {}, 404, "not_found"),
    ("GET", "/v1/jobs", {"params": {"limit": 0}}, 422, "bad_parameters"),
    ("GET", "/v1/jobs/{job_id}", {}, 404, "not_found"),
    ("DELETE", "/v1/jobs/{job_id}", {}, 404, "not_found"),
    ("GET", "/v1/jobs/{job_id}/events", {}, 404, "not_found"),
    ("POST", "/v1/audits", {"json": {"rows": [], "recipe": {}}}, 422, "unknown_part"),
    ("GET", "/v1/audits/{job_id}", {}, 404, "not_found"),
    ("GET", "/v1/audits/{job_id}/rows", {}, 404, "not_found"),
    ("POST", "/v1/token-losses", {"json": {"corpus": "chats", "example_id": "x"}}, 422, "bad_parameters"),
    ("GET", "/v1/token-losses/{job_id}", {}, 404, "not_found"),
    ("GET", "/v1/reports/{name}", {}, 404, "not_found"),
    ("GET", "/v1/corpora", {}, 500, "internal"),
    ("GET", "/v1/corpora/{corpus}", {}, 404, "not_found"),
    ("GET", "/v1/corpora/{corpus}/gap", {}, 404, "not_found"),
    ("POST", "/v1/sql", {"json": {"statement": "drop view gap"}}, 500, "internal"),
    ("POST", "/v1/queries/{name}", {"json": {}}, 404, "not_found"),
    ("GET", "/healthz", {}, 500, "internal"),
    ("GET", "/readyz", {}, 503, "not_ready"),
]


def check_shape(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) - {"truncated"} == {"code", "message", "details"}
    assert isinstance(error["code"], str)
    assert len(error["message"]) > 10
    assert isinstance(error["details"], list)
    return error


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service whose store has a damaged corpus and another format version, and whose health check fails."""
    root = tmp_path_factory.mktemp("broken")
    store = scored_store(root)
    store.write_bytes("corpora/chats/corpus.json", b"{")
    store.write_json("store.json", {"format_version": 99})
    app = create_app(Settings(store=str(root)))

    def fail(request: object) -> None:
        raise RuntimeError("SECRET text of a user")

    next(route for route in app.routes if getattr(route, "path", "") == "/healthz").dependant.call = fail  # type: ignore[attr-defined]
    with running(app) as address:
        yield address


@pytest.mark.parametrize(("method", "path", "options", "status", "code"), REFUSALS)
def test_every_endpoint_refuses_in_the_one_shape(
    broken: str, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    link = broken + path.format(mix_id=ABSENT, job_id=ABSENT, corpus="absent", name="absent")
    answer = httpx.request(method, link, **options)
    assert (answer.status_code, check_shape(answer)["code"]) == (status, code)
    assert "SECRET" not in answer.text
    assert "Traceback" not in answer.text


def test_the_walk_leaves_no_endpoint_out(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    offered = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert offered - NEVER_REFUSED == {(method, path) for method, path, *_ in REFUSALS}


def test_a_failure_names_its_request_id_and_nothing_else(broken: str) -> None:
    answer = httpx.get(f"{broken}/healthz", headers={"X-Request-Id": "abc-1"})
    assert check_shape(answer)["details"] == [{"request_id": "abc-1"}]
    assert answer.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("given", [b"x" * 65, b"a b", "ä".encode()])
def test_an_unfit_request_id_is_replaced(http: httpx.Client, given: bytes) -> None:
    answer = http.get("/healthz", headers={b"X-Request-Id": given})
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", ["/v1", "/v1/mixes/", "/v1/nothing", "/v1/mixes/x/y/z", "/redoc"])
def test_unknown_routes(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, check_shape(answer)["code"]) == (404, "unknown_route")


def test_wrong_methods(http: httpx.Client) -> None:
    answer = http.put("/v1/corpora")
    assert (answer.status_code, check_shape(answer)["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/mixes", "GET, HEAD, POST"),
        ("OPTIONS", f"/v1/mixes/{ABSENT}", "DELETE, GET, HEAD"),
        ("POST", f"/v1/mixes/{ABSENT}/data", "GET, HEAD"),
        ("PATCH", f"/v1/jobs/{ABSENT}", "DELETE, GET, HEAD"),
        ("GET", "/v1/sql", "POST"),
        ("OPTIONS", "/v1/mixes/preview", "POST"),
    ],
)
def test_allow_and_the_text_name_every_method_of_a_path(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert allowed in check_shape(answer)["message"]


@pytest.mark.parametrize("mix_id", ["x", "..%2F..%2Fstore.json", "0" * 31, "0" * 33, "G" * 32, "%00"])
def test_what_can_be_no_id_is_answered_like_an_absent_one(http: httpx.Client, mix_id: str) -> None:
    absent = http.get(f"/v1/mixes/{ABSENT}/rows")
    for tail in ("", "/rows", "/data"):
        found = http.get(f"/v1/mixes/{mix_id}{tail}")
        assert found.status_code == 404
        if "2F" not in mix_id:
            assert found.json() == absent.json()


@pytest.mark.parametrize("corpus", ["absent", "..", "%00", "..%5C"])
def test_what_can_be_no_corpus_is_answered_like_an_absent_one(http: httpx.Client, corpus: str) -> None:
    assert http.get(f"/v1/corpora/{corpus}/gap").status_code == 404


@pytest.mark.parametrize(
    "query", ["rows?limit=0", "rows?limit=x", "rows?after=-2", "data?format=csv", f"rows?after={10**30}"]
)
def test_parameters_out_of_range_are_named_without_their_values(http: httpx.Client, query: str) -> None:
    made = http.post("/v1/mixes", **form(task_rows(3))).json()
    answer = http.get(f"{made['links']['self']}/{query}")
    error = check_shape(answer)
    assert (answer.status_code, error["code"]) == (422, "bad_parameters")
    assert error["details"][0]["pointer"].startswith("/query/")
    assert set(error["details"][0]) == {"pointer", "message"}


RECIPE_FAULTS: list[tuple[Any, int, str]] = [
    ({"corpus": "nowhere"}, 422, "not_found"),
    ({"corpus": "chats", "strateggy": "random"}, 422, "bad_recipe"),
    ({"corpus": "chats", "rows": 1000}, 422, "not_enough_rows"),
    ({"corpus": "chats", "aligned": "nobody"}, 422, "not_found"),
    ({"corpus": "chats", "interleave_ratio": 0.3, "order": "every_k"}, 422, "bad_recipe"),
    ([1], 422, "bad_recipe"),
]


@pytest.mark.parametrize(("recipe", "status", "code"), RECIPE_FAULTS)
def test_recipes_that_cannot_be_met(http: httpx.Client, recipe: Any, status: int, code: str) -> None:
    answer = http.post("/v1/mixes", json={"rows": task_rows(10), "recipe": recipe})
    assert (answer.status_code, check_shape(answer)["code"]) == (status, code)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("{", "neither JSON nor YAML at line"),
        ("[" * 10_000, "nested too deeply"),
        ("just words", "must be an object"),
        ("!!python/object/apply:os.system [ls]", "neither JSON nor YAML"),
        ("", "must be an object"),
    ],
)
def test_recipe_texts_that_are_refused(http: httpx.Client, text: str, reason: str) -> None:
    body = form(task_rows(2)) | {"data": {"recipe": text}}
    answer = http.post("/v1/mixes", **body)
    error = check_shape(answer)
    assert (answer.status_code, error["code"]) == (422, "bad_recipe")
    assert reason in error["message"]


def test_a_damaged_mix_is_a_failure_of_ours_and_listed_as_damaged(http: httpx.Client, store_path: Path) -> None:
    made = http.post("/v1/mixes", **form(task_rows(8, "to be damaged"))).json()
    folder = store_path / "mixes" / "local" / made["mix_id"]
    data = (folder / "mix.parquet").read_bytes()
    (folder / "mix.parquet").write_bytes(data[:-1])
    cut = http.get(made["links"]["parquet"])
    assert (cut.status_code, check_shape(cut)["code"]) == (500, "internal")
    assert str(store_path) not in cut.text
    (folder / "manifest.json").write_text("{}")
    assert check_shape(http.get(made["links"]["rows"]))["code"] == "internal"
    listed = {item["mix_id"]: item["status"] for item in http.get("/v1/mixes").json()["mixes"]}
    assert listed[made["mix_id"]] == "damaged"


def test_a_mix_whose_manifest_is_of_another_shape_can_be_deleted_and_the_log_says_what_is_wrong(
    http: httpx.Client, store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = http.post("/v1/mixes", **form(task_rows(8, "of another shape"))).json()
    folder = store_path / "mixes" / "local" / made["mix_id"]
    document = json.loads((folder / "manifest.json").read_text())
    document["shape"] = document.pop("ratio")
    (folder / "manifest.json").write_text(json.dumps(document))
    with caplog.at_level(logging.ERROR, LOGGER):
        assert http.get(made["links"]["rows"]).status_code == 500
    (event,) = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == LOGGER]
    assert "manifest.json is not a manifest of this version: /ratio" in event["reason"]
    assert http.delete(made["links"]["self"], headers={"If-Match": '"other"'}).status_code == 412
    assert http.delete(made["links"]["self"]).status_code == 204
    assert not folder.exists()
    assert http.delete(made["links"]["self"]).status_code == 404


def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(http: httpx.Client, store_path: Path) -> None:
    made = http.post("/v1/mixes", **form(task_rows(8, "to break off"))).json()
    path = store_path / "mixes" / "local" / made["mix_id"] / "mix.parquet"
    path.write_bytes(b"PAR1" + bytes(path.stat().st_size - 4))
    with pytest.raises(httpx.RemoteProtocolError, match="closed connection"):
        http.get(made["links"]["arrow"])
    refused = http.get(made["links"]["jsonl"])  # rendered whole before the first byte is sent
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "internal")


def test_the_log_has_ids_and_routes_but_no_text_of_users(
    http: httpx.Client, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        http.post("/v1/mixes", **form(task_rows(2, "SECRET")), headers={"X-Request-Id": "me-7"})
        http.post("/v1/mixes", **form(b'{"SECRET": 1}\n'))
        http.get("/v1/mixes/SECRET?after=SECRET")
        httpx.get(f"{broken}/healthz")
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == LOGGER]
    assert not any("SECRET" in line for line in lines)
    events = [json.loads(line) for line in lines]
    # An earlier test's last line may come late: it is written when the answer is sent.
    first = next(event for event in events if event.get("request_id") == "me-7")
    assert first.items() >= {"route": "/v1/mixes", "status": 201, "method": "POST"}.items()
    failure = next(event for event in events if event["event"] == "request failed")
    assert failure["error"] == ["RuntimeError"]
    assert any("test_errors.py" in place for place in failure["at"])


def test_a_message_names_commands_as_whoever_started_the_service_types_them() -> None:
    text = "`python -m curator score --corpus chats` makes one"
    assert orjson.loads(error_body("missing", text))["error"]["message"] == text
    with console_started(["ballast serve"]):
        found = orjson.loads(error_body("missing", text))["error"]
    assert found["message"] == "`ballast score --corpus chats` makes one"


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/mixes?limt=5", "/query/limt"),
        ("/v1/mixes?limit=5&limit=6", "/query/limit"),
        ("/v1/corpora/chats/gap?hold_out=finance&holdout=finance", "/query/holdout"),
        (f"/v1/mixes/{ABSENT}/data?formt=openai", "/query/formt"),
        ("/v1/policy?x=", "/query/x"),
    ],
)
def test_a_parameter_that_would_have_no_effect_is_refused(http: httpx.Client, path: str, pointer: str) -> None:
    """A misspelt one would else give the first page, or another format, without a word."""
    answer = http.get(path)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "bad_parameters"
    assert [item["pointer"] for item in answer.json()["error"]["details"]] == [pointer]


def test_a_list_may_come_as_several_parameters(http: httpx.Client) -> None:
    answer = http.get("/v1/corpora/chats/gap?hold_out=nope&hold_out=nothing")
    assert "nope" in answer.json()["error"]["message"]


def test_without_a_key_a_wrong_parameter_is_a_401_like_the_rest(tmp_path: Path) -> None:
    create_key(scored_store(tmp_path), "acme", ["mix"])
    with running(Settings(store=str(tmp_path))) as address:
        for path in ("/v1/mixes?key=ballast_x_y", "/v1/corpora/chats/gap?x=1", "/v1/mixes"):
            assert httpx.get(address + path).status_code == 401
