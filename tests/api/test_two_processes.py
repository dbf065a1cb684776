"""Two processes of the service on one store, local and in a bucket."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from s3fs import S3FileSystem

from curator.store.store import Store
from tests.api.serving import form, scored_store, started, task_rows
from tests.buckets import Losses, bucket_server, environment, losing_proxy

N_AT_ONCE = 6


class Two(NamedTuple):
    """Two processes on one store."""

    store: Store
    urls: list[str]
    worker: list[str]  # the command of a worker that ends when nothing is left to do
    environment: dict[str, str] | None


def copied(source: Path, target: Store) -> Store:
    """The files of a local store in another one."""
    for path in source.rglob("*"):
        if path.is_file():
            target.write_bytes(str(path.relative_to(source)), path.read_bytes())
    return target


@pytest.fixture(scope="module", params=["local", "bucket"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    root = tmp_path_factory.mktemp("two")
    store, place, variables = scored_store(root / "store"), str(root / "store"), None
    with ExitStack() as stack:
        if request.param == "bucket":
            variables = environment(stack.enter_context(bucket_server()))
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in variables.items():
                patch.setenv(name, value)
            place = "s3://ballast/two"
            store = copied(root / "store", Store(place))
            shutil.rmtree(root / "store")
        queue = ("--job-queue", str(root / "queue.sqlite"))
        options = (*queue, "--log-level", "error", "--workers", "0")
        processes = [stack.enter_context(started(place, *options, environment=variables)) for _ in range(2)]
        worker = [sys.executable, "-m", "api", "worker", "--store", place, *queue, "--until-idle"]
        yield Two(store, [url for _, url in processes], worker, variables)


def sent_to_both(urls: list[str], key: str, n_rows: list[int], **headers: str) -> list[httpx.Response]:
    """The answers to requests under one key, sent to both processes at once."""

    def send(number: int) -> httpx.Response:
        body = form(task_rows(n_rows[number % len(n_rows)], key))
        return httpx.post(
            f"{urls[number % 2]}/v1/mixes", **body, headers={"Idempotency-Key": key, **headers}, timeout=120
        )

    with ThreadPoolExecutor(N_AT_ONCE) as pool:
        return list(pool.map(send, range(N_AT_ONCE)))


def test_one_key_makes_one_job(two: Two) -> None:
    store, urls = two.store, two.urls
    answers = sent_to_both(urls, "job", [10], Prefer="respond-async")
    made = {answer.json()["job_id"] for answer in answers if answer.status_code == 202}
    refused = {answer.json()["error"]["code"] for answer in answers if answer.status_code != 202}
    assert len(made) == 1
    assert refused <= {"idempotency_key_in_use"}
    assert set(store.list("jobs/local")) == made
    again = sent_to_both(urls, "job", [10], Prefer="respond-async")
    assert {answer.json()["job_id"] for answer in again if answer.status_code == 202} == made


def test_one_key_with_two_bodies_makes_one_mix(two: Two) -> None:
    store, urls = two.store, two.urls
    before = set(store.list("mixes/local"))
    answers = sent_to_both(urls, "mix", [11, 12, 13])
    codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code not in (200, 201)}
    assert codes <= {"idempotency_key_in_use", "idempotency_key_reused"}
    assert codes
    assert len(set(store.list("mixes/local")) - before) == 1


def test_a_damaged_record_counts_as_absent(two: Two) -> None:
    store, urls = two.store, two.urls
    (first,) = {answer.json()["mix_id"] for answer in sent_to_both(urls, "cut", [14]) if answer.status_code < 300}
    for name in store.list("idempotency/local", "*.json"):
        store.write_bytes(f"idempotency/local/{name}", b'{"format_vers')
    again = httpx.post(
        f"{urls[1]}/v1/mixes", **form(task_rows(14, "cut")), headers={"Idempotency-Key": "cut"}, timeout=60
    )
    assert (again.status_code, again.json()["mix_id"]) == (200, first)


@pytest.mark.parametrize("two", ["local", pytest.param("bucket", marks=pytest.mark.slow)], indirect=True)
def test_jobs_sent_to_both_are_done_once_by_two_workers_and_both_serve_what_came_of_them(two: Two) -> None:
    store, urls = two.store, two.urls
    headers = {"Prefer": "respond-async"}
    sent = [
        httpx.post(f"{urls[n % 2]}/v1/mixes", **form(task_rows(20 + n)), headers=headers, timeout=120)
        for n in range(N_AT_ONCE)
    ]
    links = [answer.raise_for_status().json()["links"]["self"] for answer in sent]
    workers = [subprocess.Popen(two.worker, env=two.environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    jobs = [httpx.get(urls[1 - n % 2] + link, timeout=120).json() for n, link in enumerate(links)]
    assert {(job["state"], job["n_attempts"]) for job in jobs} == {("done", 1)}
    mix_ids = [job["result"]["mix_id"] for job in jobs]
    assert set(mix_ids) <= set(store.list("mixes/local"))
    for mix_id in mix_ids:
        rows = [httpx.get(f"{url}/v1/mixes/{mix_id}/data", timeout=120).raise_for_status().content for url in urls]
        assert rows[0] == rows[1]
    assert httpx.delete(f"{urls[0]}/v1/mixes/{mix_ids[0]}", timeout=120).status_code == 204
    assert httpx.get(f"{urls[1]}/v1/mixes/{mix_ids[0]}", timeout=120).status_code == 404


@pytest.mark.slow
def test_a_store_that_is_away_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    scored_store(tmp_path / "local")
    with bucket_server() as bucket, pytest.MonkeyPatch.context() as patch:
        losses = Losses(method="GET", every=False)
        with losing_proxy(bucket, losses) as proxy:
            variables = environment(proxy) | {"AWS_MAX_ATTEMPTS": "2"}
            for name, value in environment(bucket).items():
                patch.setenv(name, value)
            S3FileSystem.clear_instance_cache()  # one of another test's bucket would be taken
            store = copied(tmp_path / "local", Store(f"s3://ballast/{tmp_path.name}"))
            options = ("--job-queue", str(tmp_path / "queue.sqlite"), "--log-level", "error")
            with started(f"s3://{store.base}", *options, environment=variables) as (_, url):
                assert httpx.get(f"{url}/v1/mixes", timeout=120).status_code == 200
                losses.every = True
                away = httpx.get(f"{url}/v1/mixes", timeout=120)
                assert (away.status_code, away.json()["error"]["code"]) == (503, "unavailable")
                assert away.headers["Retry-After"] == "5"
                assert "s3://" not in away.text
                assert httpx.get(f"{url}/healthz", timeout=120).status_code == 200
                losses.every = False
                assert httpx.get(f"{url}/v1/mixes", timeout=120).status_code == 200
                losses.lines.clear()
                time.sleep(1.1)
                began_s = time.monotonic()
                assert [httpx.get(f"{url}/readyz").status_code for _ in range(5)] == [200] * 5
                n_seconds = 1 + int(time.monotonic() - began_s)  # the store is asked once in each, at most
                others = ("usage", "jobs-active", "openai")  # the log, and the service's own looks at its jobs
                asked = [line for line in losses.lines if not any(word in line for word in others)]
                assert len(asked) <= 4 * n_seconds
