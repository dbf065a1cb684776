"""The catalogue of bombs, sent to a running service: a clear 4xx, in time, with little memory beyond idle."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.api.serving import RECIPE, form, scored_store, started, task_rows
from tests.bombs import BOMBS, MIB

MOST_BYTES = 300 * MIB
TIMEOUT_S = 120.0  # a tenth of it on an idle machine; the tests beside this one take theirs

END = b'0]}], "recipe": {"corpus": "chats"}}'
BODIES: dict[str, Callable[[], bytes]] = {
    "numbers": lambda: b'{"rows": [{"messages": [' + b"0," * (7 * MIB) + b'0]}], "recipe": {"corpus": "chats"}}',
    "objects": lambda: b'{"rows": [' + b"{}," * (5 * MIB) + b'{}], "recipe": {"corpus": "chats"}}',
    "objects of one row": lambda: b'{"rows": [{"messages": [' + b"{}," * (5 * MIB) + b'{}]}], "recipe": {}}',
    "keys": lambda: (
        b'{"rows": [{"messages": {' + b",".join(b'"%d":1' % n for n in range(1_200_000)) + b'}}], "recipe": {}}'
    ),
    "levels": lambda: b'{"rows": ' + b"[" * (15 * MIB),
    "a text": lambda: b'{"rows": [{"messages": "' + b"x" * (15 * MIB) + b'"}], "recipe": {"corpus": "chats"}}',
    "turns": lambda: (
        b'{"rows": [{"messages": [' + b'{"role":"user"},' * 900_000 + b'0]}], "recipe": {"corpus": "chats"}}'
    ),
    "quotas": lambda: json.dumps(
        {
            "rows": task_rows(1),
            "recipe": {
                "corpus": "chats",
                "strategy": {"name": "stratified", "by": "source", "quotas": {f"d{n}": 1 for n in range(100_000)}},
            },
        }
    ).encode(),
    "names": lambda: json.dumps(
        {"rows": task_rows(1), "recipe": {"corpus": "chats", "hold_out": ["finance"] * 100_000}}
    ).encode(),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, str]]:
    root: Path = tmp_path_factory.mktemp("bombs")
    scored_store(root)
    with started(root, "--log-level", "warning") as (process, url):
        for _ in range(3):  # what is loaded once, is
            assert httpx.post(f"{url}/v1/mixes", **form(task_rows(20)), timeout=120).status_code in (200, 201)
        yield psutil.Process(process.pid), url


class Peak:
    """How much the resident memory of a process and its children rose in a block, by the kernel's own mark."""

    def __init__(self, process: psutil.Process) -> None:
        self._processes = [process, *process.children(recursive=True)]

    def __enter__(self) -> "Peak":
        for process in self._processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the mark is what is resident now
        self._before = self._marks()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._marks()
        self.n_bytes = sum(after[pid] - self._before.get(pid, 0) for pid in after)

    def _marks(self) -> dict[int, int]:
        found = {}
        for process in self._processes:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM"):
                        found[process.pid] = 1024 * int(line.split()[1])
        return found


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
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory_and_time(service: tuple[psutil.Process, str], name: str) -> None:
    process, url = service
    content = BOMBS[name]()
    assert len(content) < 16 * MIB
    began_s = time.monotonic()
    with Peak(process) as peak:
        upload = {"files": {"file": ("upload", content)}, "data": {"recipe": json.dumps(RECIPE)}}
        answer = httpx.post(f"{url}/v1/mixes", **upload, timeout=TIMEOUT_S)
    check(answer, url)
    print(f"{name}: {len(content):,} bytes, {time.monotonic() - began_s:.1f} s, {peak.n_bytes / MIB:.0f} MiB")
    assert peak.n_bytes <= MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_a_json_body_takes_little_memory_and_time(service: tuple[psutil.Process, str], name: str) -> None:
    process, url = service
    content = BODIES[name]()
    assert len(content) <= 16 * MIB
    began_s = time.monotonic()
    with Peak(process) as peak:
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{url}/v1/mixes", content=content, headers=headers, timeout=TIMEOUT_S)
    check(answer, url)
    print(f"{name}: {len(content):,} bytes, {time.monotonic() - began_s:.1f} s, {peak.n_bytes / MIB:.0f} MiB")
    assert peak.n_bytes <= MOST_BYTES
