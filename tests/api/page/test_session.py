"""Signing in: whose cookie it is, what it opens, and forms of other sites."""

import json
from pathlib import Path

import httpx
import pytest

from tests.api.page.conftest import Keyed, form_token, signed_in
from tests.api.serving import json_lines, task_rows


def _build(client: httpx.Client) -> httpx.Response:
    token = form_token(client.get("/mix").text)
    data = {"form_token": token, "corpus": "chats"}
    return client.post("/mix/build", data=data, files={"file": ("task.jsonl", json_lines(task_rows(20)))})


def test_without_a_key_every_view_leads_to_the_sign_in(keyed: Keyed) -> None:
    with httpx.Client(base_url=keyed.url) as client:
        for path in ("/", "/corpora/chats", "/mix", "/mixes", "/sql", "/jobs", "/mixes/" + "0" * 32 + "/data"):
            answer = client.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/sign-in")
        assert client.get("/corpora/chats").headers["location"] == "/sign-in?next=%2Fcorpora%2Fchats"


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(keyed: Keyed) -> None:
    with httpx.Client(base_url=keyed.url) as client:
        shown = client.get("/sign-in")
        answer = client.post("/sign-in", data={"key": f" {keyed.acme} ", "form_token": form_token(shown.text)})
        assert answer.status_code == 303
        for cookie in (*shown.headers.get_list("set-cookie"), *answer.headers.get_list("set-cookie")):
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
        assert client.get("/").status_code == 200
        token = form_token(client.get("/").text)
        assert client.post("/sign-out", data={"form_token": token}).status_code == 303
        assert client.get("/").status_code == 303


def test_a_wrong_key_opens_nothing_and_is_not_kept(keyed: Keyed) -> None:
    with httpx.Client(base_url=keyed.url) as client:
        token = form_token(client.get("/sign-in").text)
        answer = client.post("/sign-in", data={"key": keyed.acme[:-2] + "xx", "form_token": token})
        assert answer.status_code == 401
        assert "opens nothing" in answer.text
        assert "ballast_key" not in client.cookies
        assert keyed.acme[:-2] not in answer.text


@pytest.mark.parametrize("wanted", ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "x"])
def test_signing_in_never_leads_to_another_site(keyed: Keyed, wanted: str) -> None:
    with httpx.Client(base_url=keyed.url) as client:
        token = form_token(client.get("/sign-in").text)
        answer = client.post("/sign-in", data={"key": keyed.acme, "form_token": token, "wanted": wanted})
        assert answer.headers["location"] == "/"


def test_a_tenant_sees_its_own_mixes_alone(keyed: Keyed) -> None:
    with signed_in(keyed.url, keyed.acme) as acme, signed_in(keyed.url, keyed.other) as other:
        built = _build(acme)
        assert built.status_code == 303, built.text
        path = built.headers["location"].split("?")[0]
        assert acme.get(path).status_code == 200
        assert path.rsplit("/", 1)[1] in acme.get("/mixes").text
        for foreign in (path, f"{path}/data"):
            assert other.get(foreign).status_code == 404
        assert path.rsplit("/", 1)[1] not in other.get("/mixes").text
        token = form_token(other.get("/").text)
        assert other.post(f"{path}/delete", data={"form_token": token}).status_code == 404
        with httpx.Client(base_url=keyed.url, headers={"Authorization": f"Bearer {keyed.acme}"}) as api:
            assert api.get(f"/v1{path}").status_code == 200
        assert '<span class="tag">acme</span>' in acme.get("/").text


def test_the_scopes_of_the_key_are_those_of_the_page(keyed: Keyed) -> None:
    with signed_in(keyed.url, keyed.sql_alone) as client:
        assert client.get("/sql").status_code == 200
        home = client.get("/")
        assert home.status_code == 200
        assert 'href="/mix"' not in home.text
        for path in ("/mix", "/mixes"):
            refused = client.get(path)
            assert refused.status_code == 403
            assert "scope" in refused.text


def test_a_form_of_another_site_changes_nothing(keyed: Keyed) -> None:
    with signed_in(keyed.url, keyed.acme) as acme, signed_in(keyed.url, keyed.other) as other:
        foreign = form_token(other.get("/").text)
        for token in ("", "0" * 64, foreign):
            for path in ("/sql", "/sign-out"):
                answer = acme.post(path, data={"form_token": token, "statement": "select 1"})
                assert answer.status_code == 403
                assert "foreign_form" in answer.text
            sent = acme.post(
                "/mix/build",
                data={"form_token": token, "corpus": "chats"},
                files={"file": ("task.jsonl", json_lines(task_rows(3)))},
            )
            assert sent.status_code == 403
        assert acme.get("/").status_code == 200


def test_forms_are_bounded_before_they_are_read(keyed: Keyed) -> None:
    with httpx.Client(base_url=keyed.url) as client:
        client.get("/sign-in")
        assert client.post("/sign-in", data={"key": "x" * 300_000}).status_code == 413
        assert client.post("/sign-in", content=json.dumps({"key": "x"})).status_code == 415


def test_an_audit_needs_its_scope(keyed: Keyed) -> None:
    with signed_in(keyed.url, keyed.other) as client:
        text = client.get("/jobs").text
        assert "Audit a file" not in text
        data = {"form_token": form_token(text), "corpus": "chats"}
        refused = client.post("/jobs/audit", data=data, files={"file": ("rows.jsonl", json_lines(task_rows(3)))})
        assert refused.status_code == 403
    with signed_in(keyed.url, keyed.acme) as client:
        assert "Audit a file" in client.get("/jobs").text


def test_an_open_service_takes_no_form_from_elsewhere(http: httpx.Client, root: Path) -> None:
    token = form_token(http.get("/sql").text)
    good = {"form_token": token, "statement": "select 1 as one"}
    assert http.post("/sql", data=good).status_code == 200
    assert http.post("/sql", data=good, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    with httpx.Client(base_url=http.base_url) as fresh:
        assert fresh.post("/sql", data=good).status_code == 403
