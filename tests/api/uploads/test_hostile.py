"""Uploads meant to do harm: each gets a clear 4xx (or is taken, where it is harmless), and memory stays flat."""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import zstandard

from api.tenancy.keys import create_key
from tests.api.serving import (
    RECIPE,
    json_lines,
    scored_store,
    started,
    task_rows,
)

MIB = 2**20
GOOD = json_lines(task_rows(3))
DEEP = 100_000
BOUNDARY = b"frontier"
LONG_ROW = b'{"a": "' + b"x" * 1_000_000 + b'"}\n'

# name: (bytes, statuses that may answer)
UPLOADS: dict[str, tuple[bytes | Callable[[], bytes], set[int]]] = {
    "nothing": (b"", {422}),
    "a lone line feed": (b"\n", {422}),
    "NUL bytes": (b"\0" * 10_000, {422}),
    "NUL inside a row": (GOOD.replace(b"question 1", b"question \0 1"), {422}),
    "an escaped NUL": (GOOD.replace(b"question 1", b"question \\u0000 1"), {201, 422}),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, {200, 201}),
    "UTF-16": (GOOD.decode().encode("utf-16"), {422}),
    "CRLF": (GOOD.replace(b"\n", b"\r\n"), {200, 201}),
    "CR alone": (GOOD.replace(b"\n", b"\r"), {200, 201, 422}),
    "no last line feed": (GOOD.rstrip(b"\n"), {200, 201}),
    "not UTF-8": (GOOD.replace(b"question 1", b"\xff\xfe"), {422}),
    "a lone surrogate": (GOOD.replace(b"question 1", b"\\ud800"), {422}),
    "NaN": (b'{"messages": NaN}\n', {422}),
    "an infinite number": (b'{"messages": 1e999}\n', {422}),
    "a number of a million digits": (b'{"messages": ' + b"9" * MIB + b"}\n", {422}),
    "duplicate keys": (b'{"messages": [], "messages": []}\n' * 3, {422}),
    "deep lists": (b"[" * DEEP + b"]" * DEEP, {422}),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, {422}),
    "deep inside a row": (b'{"messages": ' + b"[" * DEEP + b"]" * DEEP + b"}\n", {422}),
    "an open string": (b'{"messages": "' + b"x" * MIB, {422}),
    "a line of 64 MiB": (lambda: b'{"messages": "' + b"x" * (64 * MIB) + b'"}\n', {413, 422}),
    "many empty rows": (lambda: b"{}\n" * 150_000, {413, 422}),
    "two million empty lines": (lambda: b"\n" * 2_000_000 + GOOD, {200, 201, 422}),
    "a gzip bomb": (lambda: gzip.compress(LONG_ROW * 40, 1), {413}),
    "a zstd bomb": (lambda: zstandard.compress(LONG_ROW * 40), {413}),
    "packed emptiness": (lambda: zstandard.compress(b"\n" * 100_000_000), {413, 422}),
    "gzip in gzip": (gzip.compress(gzip.compress(GOOD)), {413, 422}),
    "a cut gzip": (gzip.compress(GOOD * 100)[:-20], {422}),
    "a gzip head alone": (b"\x1f\x8b\x08\x00", {422}),
    "a Parquet head alone": (b"PAR1", {422}),
    "Parquet with a false footer": (b"PAR1" + b"x" * 100 + b"\xff\xff\xff\x7fPAR1", {422}),
    "an Arrow head alone": (b"ARROW1\0\0", {422}),
    "HTML": (b"<!doctype html><p>hello", {422}),
    "ELF": (b"\x7fELF" + b"\0" * 64, {422}),
    "a path": (b"/etc/passwd", {422}),
    "a CSV formula": (b"messages\n=cmd|' /C calc'!A0\n", {422}),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, str]]:
    root = tmp_path_factory.mktemp("hostile")
    scored_store(root / "store")
    bounds = ("--max-unpacked-bytes", str(16 * MIB), "--max-task-rows", "100000", "--log-level", "warning")
    with started(root / "store", *bounds) as (process, url):
        httpx.get(f"{url}/v1/corpora")
        yield psutil.Process(process.pid), url


def post(url: str, content: bytes, name: str = "x.jsonl") -> httpx.Response:
    data = {"recipe": json.dumps(RECIPE)}
    return httpx.post(f"{url}/v1/mixes", files={"file": (name, content)}, data=data, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("name", UPLOADS)
def test_uploads_meant_to_harm(service: tuple[psutil.Process, str], name: str) -> None:
    process, url = service
    made, statuses = UPLOADS[name]
    content = made if isinstance(made, bytes) else made()
    before = process.memory_info().rss
    answer = post(url, content)
    assert answer.status_code in statuses, answer.text[:500]
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert len(error["message"]) > 10
        assert len(answer.content) < MIB, "an error body is bounded"
    assert process.memory_info().rss - before < 400 * MIB
    assert httpx.get(f"{url}/healthz").status_code == 200


GIB_LINE, N_EMPTY = 1_000_000_000, 10_000_000
LARGE: dict[str, tuple[Callable[[], Iterator[bytes]], int]] = {
    "a line of 1 GB": (lambda: chain([b'{"messages": "'], repeat(b"x" * MIB, GIB_LINE // MIB), [b'"}\n']), 422),
    "ten million empty rows": (lambda: repeat(b"{}\n" * 10_000, N_EMPTY // 10_000), 422),
    "ten million empty lines": (lambda: repeat(b"\n" * 10_000, N_EMPTY // 10_000), 422),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_uploads_meant_to_harm(service: tuple[psutil.Process, str], name: str) -> None:
    process, url = service
    content, status = LARGE[name]
    head = f'--frontier\r\nContent-Disposition: form-data; name="recipe"\r\n\r\n{json.dumps(RECIPE)}\r\n'
    head += '--frontier\r\nContent-Disposition: form-data; name="file"; filename="x.jsonl"\r\n\r\n'
    body = chain([head.encode()], content(), [b"\r\n--frontier--\r\n"])
    before, most = process.memory_info().rss, 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.05):
            most = max(most, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
        answer = httpx.post(f"{url}/v1/mixes", content=body, headers=headers, timeout=280)
    finally:
        ended.set()
        watching.join()
    assert answer.status_code == status, answer.text[:300]
    assert len(answer.json()["error"]["message"]) > 10
    assert len(answer.content) < MIB
    assert most - before < 400 * MIB, "memory stays flat"


BODIES: list[tuple[str, dict[str, str], bytes]] = [
    ("/v1/mixes", {"Content-Type": "text/plain"}, GOOD),
    ("/v1/mixes", {}, GOOD),
    ("/v1/mixes", {"Content-Type": "multipart/form-data; boundary=" + "x" * 5_000}, GOOD),
    ("/v1/mixes", {"Content-Type": "multipart/form-data; boundary=a"}, b"--a\r\n" + b"X: y\r\n" * 100_000),
    ("/v1/mixes", {"Content-Type": "application/json"}, b"[" * DEEP),
    ("/v1/mixes", {"Content-Type": "application/json"}, b'{"rows": [NaN], "recipe": {}}'),
    ("/v1/sql", {"Content-Type": "application/json"}, b"[" * DEEP),
    ("/v1/sql", {"Content-Type": "application/json"}, b'{"statement": "' + b"x" * (5 * MIB) + b'"}'),
    ("/v1/sql", {"Content-Type": "application/json"}, b"\xff\xfe"),
    ("/v1/queries/losses", {"Content-Type": "application/json"}, b'{"params": {"a": ' + b"[" * DEEP),
    ("/v1/queries/losses", {"Content-Type": "application/json"}, b'{"params": {"a": "' + b"x" * (5 * MIB) + b'"}}'),
    ("/v1/sql", {"Content-Type": "text/plain"}, b'{"statement": "select 1"}'),
]


@pytest.mark.parametrize(("path", "headers", "body"), BODIES)
def test_bodies_meant_to_harm(
    service: tuple[psutil.Process, str], path: str, headers: dict[str, str], body: bytes
) -> None:
    answer = httpx.post(service[1] + path, headers=headers, content=body, timeout=60)
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\0b", "x" * 5_000, "CON", "hub:owner/name"])
def test_a_files_name_leads_nowhere(service: tuple[psutil.Process, str], name: str, tmp_path: Path) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
    recipe = json.dumps(RECIPE).encode()
    parts: list[tuple[bytes, Any]] = [
        (b'name="file"; filename="' + name.encode() + b'"', GOOD),
        (b'name="recipe"', recipe),
    ]
    body = b"".join(
        b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    answer = httpx.post(
        f"{service[1]}/v1/mixes", headers=headers, content=body + b"--" + BOUNDARY + b"--\r\n", timeout=60
    )
    assert answer.status_code in (200, 201, 400, 422)
    assert "root:" not in answer.text


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, str]]:
    """A service that has a key."""
    root = tmp_path_factory.mktemp("closed")
    create_key(scored_store(root), "anna", ["mix", "sql", "audit"])
    with started(root, "--log-level", "warning") as (process, url):
        httpx.get(f"{url}/v1/corpora")
        yield psutil.Process(process.pid), url


@pytest.mark.parametrize("path", ["/v1/sql", "/v1/queries/losses", "/v1/mixes", "/v1/mixes/preview", "/v1/audits"])
def test_a_large_body_without_a_key_is_not_read_into_memory(closed: tuple[psutil.Process, str], path: str) -> None:
    process, url = closed
    before, most = process.memory_info().rss, 0

    def body() -> Iterator[bytes]:
        nonlocal most
        yield b'{"statement": "'
        for _ in range(60):
            yield b"x" * MIB
            most = max(most, process.memory_info().rss)

    answer = httpx.post(url + path, content=body(), headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 401, answer.text[:300]
    assert most - before < 30 * MIB, "memory stays flat"


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * DEEP, b"{}"])
@pytest.mark.parametrize("path", ["/v1/sql", "/v1/queries/losses", "/v1/queries/nothing"])
def test_a_broken_body_without_a_key_is_a_401(closed: tuple[psutil.Process, str], path: str, body: bytes) -> None:
    answer = httpx.post(closed[1] + path, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
