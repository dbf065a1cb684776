"""Connections: a crowd of them, slow ones, and descriptors that run out."""

import contextlib
import errno
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.server.connections import LEAST_BODY_BYTES, connection_bounds, n_open_descriptors
from api.settings import Settings
from curator.errors import BadInputError, StoreError, is_out_of_service
from tests.api.serving import RECIPE, form, scored_store, started, task_rows

HALF_HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
LIMIT_S = 60
STATEMENT = {"statement": "SELECT count(*) FROM examples"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("connections") / "store"
    scored_store(path)
    return path


def connect(url: str, source: str = "127.0.0.1", data: bytes = b"") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=LIMIT_S, source_address=(source, 0))
    with contextlib.suppress(ConnectionError):  # a refused one may be closed already
        connection.sendall(data)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the service closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


@contextlib.contextmanager
def crowd(url: str, source: str, n_connections: int) -> Iterator[None]:
    """Connections that are opened, send half a head and stop, again and again until the end of the block."""
    over = threading.Event()

    def one() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), connect(url, source, HALF_HEAD) as connection:
                connection.settimeout(1)
                all_of(connection)
                over.wait(0.2)

    threads = [threading.Thread(target=one) for _ in range(n_connections)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(LIMIT_S)


@pytest.mark.parametrize(
    ("n_descriptors", "n_connections"), [(64, 150), pytest.param(256, 400, marks=pytest.mark.slow)]
)
def test_an_idle_crowd_takes_no_place_from_others_and_ends_nothing(
    root: Path, n_descriptors: int, n_connections: int
) -> None:
    options = ("--log-level", "warning", "--head-timeout-s", "2")
    with started(root, *options, n_descriptors=n_descriptors) as (process, url):
        with crowd(url, "127.0.0.2", n_connections):
            for turn in range(4):
                made = httpx.post(f"{url}/v1/mixes", **form(task_rows(20, f"{n_descriptors} {turn}")), timeout=LIMIT_S)
                assert made.status_code == 201, made.text
                asked = httpx.post(f"{url}/v1/sql", json=STATEMENT, timeout=LIMIT_S)
                assert asked.status_code == 200, asked.text
        assert process.poll() is None
        process.terminate()
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert "connections refused" in {line["event"] for line in lines}
    assert len(lines) < 100


def test_a_crowd_from_the_clients_own_address_is_answered_and_goes(root: Path) -> None:
    with started(root, "--head-timeout-s", "1", n_descriptors=64) as (process, url):
        idle = [connect(url, data=HALF_HEAD) for _ in range(60)]
        refused = httpx.get(f"{url}/healthz", timeout=LIMIT_S)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        assert refused.headers["Retry-After"] == "5"
        answers = [all_of(connection) for connection in idle]
        assert sum(b" 408 " in answer for answer in answers) >= 2
        for connection in idle:
            connection.close()
        assert httpx.get(f"{url}/healthz", timeout=LIMIT_S).status_code == 200
        assert process.poll() is None


@pytest.fixture(scope="module")
def quick(root: Path) -> Iterator[str]:
    """A service with short times."""
    with started(root, "--head-timeout-s", "1", "--body-timeout-s", "1") as (_, url):
        yield url


def test_a_head_has_its_time_also_after_an_answer(quick: str) -> None:
    with connect(quick, data=HALF_HEAD.replace(b": x", b": 127.0.0.1") + b"\r\n") as connection:
        assert b" 200 " in connection.recv(65536)
        connection.sendall(HALF_HEAD)
        assert b'"code":"request_timeout"' in all_of(connection)


def test_a_silent_connection_is_closed(quick: str) -> None:
    with connect(quick) as connection:
        assert all_of(connection) == b""


def test_a_body_must_make_progress(quick: str) -> None:
    lines = ("POST /v1/mixes HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: 99999")
    head = "".join(f"{line}\r\n" for line in (*lines, "")).encode()
    with connect(quick, data=head) as connection:
        connection.sendall(b'{"rows":')
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'"details":[]}}')


def test_a_steady_body_has_all_the_time_it_needs(quick: str) -> None:
    def slowly() -> Iterator[bytes]:
        for _ in range(6):
            yield b" " * LEAST_BODY_BYTES
            time.sleep(0.3)
        yield b"{}"

    answer = httpx.post(f"{quick}/v1/mixes", content=slowly(), headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.json()["error"]["code"] == "missing_part"


def test_what_is_not_http_has_the_one_shape_of_errors(quick: str) -> None:
    with connect(quick, data=b"\x16\x03\x01 hello\r\n\r\n") as connection:
        head, _, body = all_of(connection).partition(b"\r\n\r\n")
    assert b" 400 " in head
    assert json.loads(body)["error"]["code"] == "malformed_request"


def test_an_answer_that_nobody_fetches_ends(root: Path) -> None:
    with started(root, "--body-timeout-s", "1", "--async-rows", "100000") as (_, url):
        made = httpx.post(
            f"{url}/v1/mixes",
            **form(task_rows(20_000, "a long answer " * 20), {**RECIPE, "interleave_ratio": 0.001}),
            timeout=LIMIT_S,
        ).json()
        path = made["links"]["jsonl"]
        httpx.get(url + path, timeout=LIMIT_S)
        with connect(url, data=f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()) as connection:
            deadline_s = time.monotonic() + LIMIT_S
            while "\nballast_requests_running 2.0\n" in httpx.get(f"{url}/metrics", timeout=LIMIT_S).text:
                assert time.monotonic() < deadline_s, "the connection was never given up"
                time.sleep(0.2)
            assert len(all_of(connection)) < 10_000_000


def test_a_process_with_too_few_descriptors_does_not_start(root: Path) -> None:
    run = subprocess.run(
        ["bash", "-c", f"ulimit -n 14; exec {sys.executable} -m api --store {root} --port 0"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "ulimit -n" in run.stderr


def test_bounds_follow_the_limit_of_descriptors() -> None:
    settings = Settings(store="x", max_connections=1_000)
    assert connection_bounds(settings, 2**20).n_most == 1_000
    assert connection_bounds(settings, 2**20).n_most_of_address == 500
    assert connection_bounds(settings, n_open_descriptors() + 250).n_most == 101
    with pytest.raises(BadInputError, match="ulimit -n"):
        connection_bounds(settings, n_open_descriptors() + 10)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO])
def test_what_the_machine_lacks_is_never_the_senders_fault(number: int) -> None:
    for error in (BadInputError("the upload cannot be read"), StoreError("cannot read")):
        error.__cause__ = OSError(number, "x")
        assert is_out_of_service(error)
        error.__cause__ = OSError(errno.ENOENT, "x")
        assert not is_out_of_service(error)


def test_what_libraries_report_is_json_bounded_and_without_a_clients_words() -> None:
    program = """
import asyncio, logging, sys, threading, warnings
from api.telemetry import set_up_logging
set_up_logging("info")
for _ in range(10_000):
    logging.getLogger("asyncio").error("no resource\\nsocket: <...>", exc_info=OSError(24, "x"))
    logging.getLogger("python_multipart.multipart").warning("Expected %r", "SECRET")
    logging.getLogger("ballast.api").info("half a pair", extra={"fields": {"name": "\\ud800"}}) if _ == 0 else None
warnings.warn("SECRET")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise ValueError("SECRET")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S)
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    events = [line["event"] for line in lines]
    assert events.count("message of asyncio") == events.count("message of python_multipart.multipart") == 10
    assert {"half a pair", "message of py.warnings", "message of python", "the process ends"} <= set(events)
    assert len(lines) == 24
    assert "SECRET" not in run.stderr
    assert (run.stdout, run.returncode) == ("", 1)
