import gzip
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from api.errors import ApiError
from api.settings import MIB, Settings
from api.tenancy.keys import create_key
from api.tenancy.quotas import Bucket, Quotas
from curator.store.store import Store
from tests.api.serving import (
    RECIPE,
    form,
    running,
    scored_store,
    task_rows,
)


def test_a_bucket_refills_with_time() -> None:
    bucket = Bucket(capacity=60, period_s=60, level=60)
    assert bucket.take(60, now_s=0) == 0
    assert bucket.take(5, now_s=1) == pytest.approx(4)
    assert bucket.take(5, now_s=5) == 0
    assert bucket.take(60, now_s=1000) == 0
    assert bucket.take(1, now_s=1000) == pytest.approx(1)


def test_quotas_are_each_tenants_own(settings: Settings) -> None:
    quotas = Quotas(settings.model_copy(update={"tenant_rows_per_hour": 10}))
    quotas.count_rows("anna", 10)
    quotas.count_rows("bert", 10)
    with pytest.raises(ApiError, match="quota of rows") as late:
        quotas.count_rows("anna", 1)
    assert (late.value.status, late.value.code, late.value.headers) == (429, "quota_used_up", {"Retry-After": "360"})
    with pytest.raises(ApiError, match="split it") as never:
        quotas.count_rows("carl", 11)
    assert never.value.status == 413


def test_places_are_given_back_whatever_happens(settings: Settings) -> None:
    quotas = Quotas(settings)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="mine"), quotas.place("anna", "builds", 1):
            raise RuntimeError("mine")
    with (
        quotas.place("anna", "builds", 1),
        quotas.place("bert", "builds", 1),
        pytest.raises(ApiError, match="already"),
        quotas.place("anna", "builds", 1),
    ):
        pass


def test_rows_bytes_and_requests_over_http(settings: Settings) -> None:
    small = settings.model_copy(update={"tenant_rows_per_hour": 8, "tenant_bytes_per_hour": 3_500})
    with running(small) as url:
        statuses = [httpx.post(f"{url}/v1/mixes", **form(task_rows(n)), timeout=60).status_code for n in (9, 5, 5)]
        assert statuses == [413, 201, 429]
        answer = httpx.post(f"{url}/v1/mixes", **form(b"x" * 3_501), timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "over_quota")
    with running(settings.model_copy(update={"tenant_requests_per_minute": 3})) as url:
        answers = [httpx.get(f"{url}/v1/corpora") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20


def test_one_tenants_use_does_not_slow_another(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("two")
    store = Store(root).open()
    tokens = [create_key(store, name, ["mix"])[1] for name in ("anna", "bert")]
    with running(Settings(store=str(root), tenant_requests_per_minute=2)) as url:
        used = [
            httpx.get(f"{url}/v1/mixes", headers={"Authorization": f"Bearer {token}"}).status_code
            for token in (tokens[0], tokens[0], tokens[0], tokens[1])
        ]
    assert used == [200, 200, 429, 200]


def test_bytes_are_counted_as_they_come(settings: Settings) -> None:
    quotas = Quotas(settings.model_copy(update={"tenant_bytes_per_hour": 100}))
    quotas.check_bytes("anna", 100)
    quotas.count_bytes("anna", 60)
    with pytest.raises(ApiError, match="over the quota of 100") as never:
        quotas.count_bytes("anna", 60, n_before=60)
    with pytest.raises(ApiError, match="used up") as late:
        quotas.count_bytes("anna", 60)
    with pytest.raises(ApiError, match="used up"):
        quotas.check_bytes("anna", 60)
    assert (never.value.status, late.value.status) == (413, 429)


def test_an_upload_over_the_quota_never_lies_on_the_disk(settings: Settings, tmp_path: Path) -> None:
    bounds = {"tenant_bytes_per_hour": 2 * MIB, "max_upload_bytes": 500 * MIB, "temp_dir": str(tmp_path)}
    most = 0

    def body() -> Iterator[bytes]:
        nonlocal most
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(40):
            yield b"x" * MIB
            most = max([most, *(path.stat().st_size for path in tmp_path.glob("*/upload"))])

    with running(settings.model_copy(update=bounds)) as url:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = httpx.post(f"{url}/v1/mixes", content=body(), headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "over_quota")
    assert most <= 2 * MIB


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("kind", "n_bytes", "code"),
    [
        ("multipart/form-data; boundary=b", 10**12, "too_large"),
        ("application/json", 10**8, "too_large"),
        ("multipart/form-data; boundary=b", 200_000, "over_quota"),
    ],
)
def test_a_size_that_is_told_is_refused_before_anything_is_sent(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str, n_bytes: int, code: str, waits: bool
) -> None:
    monkeypatch.setattr("api.uploads.bodies.DRAIN_S", 600)
    expect = ["Expect: 100-continue"] if waits else []
    with running(settings.model_copy(update={"tenant_bytes_per_hour": 150_000})) as url:
        address = urlsplit(url)
        with socket.create_connection((str(address.hostname), address.port or 0), timeout=60) as connection:
            lines = ["POST /v1/mixes HTTP/1.1", f"Host: {address.netloc}", f"Content-Type: {kind}"]
            connection.sendall("\r\n".join([*lines, *expect, f"Content-Length: {n_bytes}", "", ""]).encode())
            answer = b""
            while b'"details"' not in answer and (more := connection.recv(65_536)):
                answer += more
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert f'"{code}"'.encode() in answer


def test_a_slow_upload_takes_its_tenants_place_and_no_place_for_builds(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    tokens = [create_key(store, name, ["mix"])[1] for name in ("anna", "bert")]
    anna, bert = ({"Authorization": f"Bearer {token}"} for token in tokens)
    slow = httpx.Request("POST", "http://x", **form(task_rows(3)))
    content, seen = slow.read(), list[int]()

    with running(Settings(store=str(tmp_path), max_builds=1, tenant_builds=1)) as url:

        def body() -> Iterator[bytes]:
            yield content[:100]
            while len(seen) < 20 and 429 not in seen:  # until the first bytes are there
                seen.append(httpx.post(f"{url}/v1/mixes", **form(task_rows(4)), headers=anna, timeout=60).status_code)
            seen.append(httpx.post(f"{url}/v1/mixes", **form(task_rows(4)), headers=bert, timeout=60).status_code)
            yield content[100:]

        headers = {**anna, "Content-Type": slow.headers["content-type"]}
        assert httpx.post(f"{url}/v1/mixes", content=body(), headers=headers, timeout=60).status_code == 201
    assert seen[-2:] == [429, 201]


def test_one_tenants_many_uploads_do_not_hold_up_anothers(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    anna, bert = (
        httpx.Client(headers={"Authorization": f"Bearer {create_key(store, tenant, ['mix'])[1]}"}, timeout=120)
        for tenant in ("anna", "bert")
    )
    answered: list[str] = []

    def send(client: httpx.Client, name: str, n_rows: int) -> None:
        body = form(task_rows(n_rows, name), {**RECIPE, "interleave_ratio": 0.001})
        assert client.post(f"{url}/v1/mixes", **body).status_code == 201
        answered.append(name)

    with running(Settings(store=str(tmp_path))) as url, ThreadPoolExecutor(9) as pool, anna, bert:
        many = [pool.submit(send, anna, f"anna {number}", 3_000) for number in range(8)]
        while len(answered) < 1:  # by then the others wait
            time.sleep(0.01)
        pool.submit(send, bert, "bert", 1_000).result()
        place = answered.index("bert")
        assert [found.result() for found in many] == [None] * 8
    assert place <= 4, answered  # the first one, the two that ran then, and at most one more beside bert's


def test_what_a_tenant_keeps_is_bounded(tmp_path: Path) -> None:
    scored_store(tmp_path)
    with running(Settings(store=str(tmp_path), tenant_stored_bytes=50_000)) as url:
        made = [httpx.post(f"{url}/v1/mixes", **form(task_rows(5, f"turn {turn}")), timeout=60) for turn in range(9)]
        assert made[0].status_code == 201
        assert made[-1].status_code == 507
        assert made[-1].json()["error"]["code"] == "tenant_storage_full"
        assert httpx.post(f"{url}/v1/mixes/preview", **form(task_rows(5))).status_code == 200
        for answer in made:
            if answer.status_code == 201:
                httpx.delete(url + answer.json()["links"]["self"])
        assert httpx.post(f"{url}/v1/mixes", **form(task_rows(5, "again"))).status_code == 201


@pytest.mark.parametrize("path", ["/v1/mixes", "/v1/sql"])
def test_a_body_that_is_packed_as_a_whole_is_refused(settings: Settings, path: str) -> None:
    with running(settings) as url:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        answer = httpx.post(url + path, content=gzip.compress(b"{}"), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_content_encoding")
    assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")
