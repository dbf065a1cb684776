"""The catalogue of bombs, sent to a running service: a clear 4xx, in time, with little memory beyond idle."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.api.serving import form, scored_store, started, task_rows
from tests.bombs import BODIES, BOMBS, MIB, Peak, send

MOST_BYTES = 300 * MIB
TIMEOUT_S = 120.0  # a tenth of it on an idle machine; the tests beside this one take theirs


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, str]]:
    root: Path = tmp_path_factory.mktemp("bombs")
    scored_store(root)
    with started(root, "--log-level", "warning") as (process, url):
        for _ in range(3):  # what is loaded once, is
            assert httpx.post(f"{url}/v1/mixes", **form(task_rows(20)), timeout=120).status_code in (200, 201)
        yield psutil.Process(process.pid), url


def check(answer: httpx.Response, url: str) -> None:
    assert 400 <= answer.status_code < 500, answer.text[:500]
    error = answer.json()["error"]
    assert error["code"] != "work_stopped", "the budget of a record comes first, the limits of the process second"
    assert 10 < len(error["message"]) < 5_000
    assert len(answer.content) < MIB
    assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200


def test_the_catalogue_has_each_container_in_each_way_of_growing() -> None:
    containers = ("jsonl", "json array", "csv", "parquet", "arrow")
    ways = ("wide", "deep", "repeated", "compressed", "many keys", "many parts")
    absent = {
        f"{container} {way}"
        for container in containers
        for way in ways
        if not any(name.startswith(container) and way in name for name in BOMBS)
    }
    assert absent == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BOMBS, *BODIES])
def test_it_takes_little_memory_and_time(service: tuple[psutil.Process, str], name: str) -> None:
    process, url = service
    content = {**BOMBS, **BODIES}[name]()
    assert len(content) <= 16 * MIB
    began_s = time.monotonic()
    with Peak(process) as peak:
        answer = send(url, name, content, TIMEOUT_S)
    check(answer, url)
    print(f"{name}: {len(content):,} bytes, {time.monotonic() - began_s:.1f} s, {peak.n_bytes / MIB:.0f} MiB")
    assert peak.n_bytes <= MOST_BYTES
