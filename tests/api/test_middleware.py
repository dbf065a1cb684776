"""A service without keys and the browser beside it: foreign pages and DNS rebinding."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from api.settings import Settings
from api.tenancy.keys import create_key
from tests.api.serving import (
    form,
    running,
    scored_store,
    task_rows,
)

FOREIGN_HOSTS = (
    "evil.example",
    "evil.example:8765",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example@localhost",
    "localhost:8765.evil.example",
    "localhost:",
    "localhost.",
    "127.0.0.2",
    "0.0.0.0",
    "::1",
    "",
)
PATHS = ("/v1/mixes", "/v1/corpora", "/metrics", "/healthz", "/openapi.json", "/docs", "/nothing/like/it")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign")
    scored_store(path)
    return path


@pytest.fixture(scope="module")
def local(root: Path) -> Iterator[str]:
    with running(Settings(store=str(root))) as address:
        yield address


@pytest.fixture(scope="module")
def shared(root: Path) -> Iterator[str]:
    with running(Settings(store=str(root), host="0.0.0.0", open=True)) as address:
        yield address


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details"}
    return str(error["code"])


def n_mixes(url: str) -> int:
    return len(httpx.get(f"{url}/v1/mixes").json()["mixes"])


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_on_loopback_another_name_reads_and_makes_nothing(local: str, host: str) -> None:
    before = n_mixes(local)
    assert {refused(httpx.get(f"{local}{path}", headers={"Host": host})) for path in PATHS} == {"foreign_host"}
    sent = httpx.post(f"{local}/v1/mixes", headers={"Host": host}, **form(task_rows(4, "rebound")))
    assert refused(sent) == "foreign_host"
    assert n_mixes(local) == before


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LocalHost"])
@pytest.mark.parametrize("port", ["", ":1", ":8765", ":65535"])
def test_on_loopback_its_own_names_are_served_at_any_port(local: str, name: str, port: str) -> None:
    assert httpx.get(f"{local}/v1/mixes", headers={"Host": name + port}).status_code == 200


def test_two_hosts_or_none_are_not_served(local: str) -> None:
    for hosts in ((), ("localhost", "evil.example"), ("evil.example", "localhost")):
        connection = http.client.HTTPConnection(urlsplit(local).netloc, timeout=20)
        connection.putrequest("GET", "/v1/mixes", skip_host=True)
        for host in hosts:
            connection.putheader("Host", host)
        connection.endheaders()
        assert connection.getresponse().status in (400, 403)  # 400: the server itself
        connection.close()


@pytest.mark.parametrize("served", ["local", "shared"])
def test_another_sites_page_changes_nothing(served: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(served)
    netloc = urlsplit(url).netloc
    mix = httpx.post(f"{url}/v1/mixes", **form(task_rows(4, "own"))).json()["links"]["self"]
    before = n_mixes(url)
    origins = (
        "null",
        "",
        "http://evil.example",
        f"http://{netloc}.evil.example",
        f"ftp://{netloc}",
        "http://localhost:3000",
    )
    for origin in origins:
        headers = {"Origin": origin}
        sent = httpx.post(f"{url}/v1/mixes", headers=headers, **form(task_rows(5, "forged")))
        assert refused(sent) == "foreign_origin", origin
        assert refused(httpx.delete(f"{url}{mix}", headers=headers)) == "foreign_origin"
        assert refused(httpx.request("ODD", f"{url}{mix}", headers=headers)) == "foreign_origin"
        assert "access-control-allow-origin" not in httpx.get(f"{url}{mix}", headers=headers).headers
    assert n_mixes(url) == before
    assert httpx.get(f"{url}{mix}").status_code == 200


@pytest.mark.parametrize("served", ["local", "shared"])
def test_its_own_page_and_reading_links_are_served(served: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(served)
    for origin in (url, url.replace("http:", "https:")):
        sent = httpx.post(f"{url}/v1/mixes", headers={"Origin": origin}, **form(task_rows(6, "own page")))
        assert sent.status_code in (200, 201)
    assert httpx.get(f"{url}/v1/mixes", headers={"Origin": "http://evil.example"}).status_code == 200


def test_on_another_interface_any_name_is_served(shared: str) -> None:
    assert httpx.get(f"{shared}/v1/mixes", headers={"Host": "ballast.lan:8765"}).status_code == 200


def test_a_key_ends_the_checks_and_is_needed_instead(tmp_path: Path) -> None:
    _, token = create_key(scored_store(tmp_path), "anna", ["mix"])
    foreign = {"Host": "ballast.example", "Origin": "https://elsewhere.example"}
    with running(Settings(store=str(tmp_path))) as url:
        body = form(task_rows(4))
        assert httpx.post(f"{url}/v1/mixes", headers=foreign, **body).status_code == 401
        keyed = foreign | {"Authorization": f"Bearer {token}"}
        assert httpx.post(f"{url}/v1/mixes", headers=keyed, **body).status_code == 201


def test_a_proxys_name_is_answered_where_it_is_allowed_and_no_other(root: Path) -> None:
    allowed = Settings(store=str(root), allowed_hosts="mix.example, Mix.example:8443")
    with running(allowed) as url, httpx.Client(base_url=url) as http:
        for host, status in (("mix.example", 200), ("MIX.example:8443", 200), ("localhost", 200)):
            assert http.get("/healthz", headers={"Host": host}).status_code == status
            origin = {"Host": host, "Origin": f"https://{host}"}
            assert http.post("/v1/mixes", **form(task_rows(3)), headers=origin).status_code in (200, 201)
        for host in ("evil.example", "mix.example:1", "mix.example.evil.example"):
            assert refused(http.get("/healthz", headers={"Host": host})) == "foreign_host"
        foreign = {"Host": "mix.example", "Origin": "https://evil.example"}
        assert refused(http.post("/v1/mixes", **form(task_rows(3)), headers=foreign)) == "foreign_origin"
