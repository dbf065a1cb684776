"""Two processes of the service on one store, local and in a bucket."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from curator.store.store import Store
from tests.api.serving import form, scored_store, started, task_rows
from tests.buckets import Losses, bucket_server, environment, losing_proxy

N_AT_ONCE = 6


def copied(source: Path, target: Store) -> Store:
    """The files of a local store in another one."""
    for path in source.rglob("*"):
        if path.is_file():
            target.write_bytes(str(path.relative_to(source)), path.read_bytes())
    return target


@pytest.fixture(scope="module", params=["local", "bucket"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, list[str]]]:
    """The store, and the addresses of both processes."""
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
        options = ("--job-queue", str(root / "queue.sqlite"), "--log-level", "error", "--workers", "0")
        processes = [stack.enter_context(started(place, *options, environment=variables)) for _ in range(2)]
        yield store, [url for _, url in processes]


def sent_to_both(urls: list[str], key: str, n_rows: list[int], **headers: str) -> list[httpx.Response]:
    """The answers to requests under one key, sent to both processes at once."""

    def send(number: int) -> httpx.Response:
        body = form(task_rows(n_rows[number % len(n_rows)], key))
        return httpx.post(
            f"{urls[number % 2]}/v1/mixes", **body, headers={"Idempotency-Key": key, **headers}, timeout=120
        )

    with ThreadPoolExecutor(N_AT_ONCE) as pool:
        return list(pool.map(send, range(N_AT_ONCE)))


def test_one_key_makes_one_job(two: tuple[Store, list[str]]) -> None:
    store, urls = two
    answers = sent_to_both(urls, "job", [10], Prefer="respond-async")
    made = {answer.json()["job_id"] for answer in answers if answer.status_code == 202}
    refused = {answer.json()["error"]["code"] for answer in answers if answer.status_code != 202}
    assert len(made) == 1
    assert refused <= {"idempotency_key_in_use"}
    assert set(store.list("jobs/local")) == made
    again = sent_to_both(urls, "job", [10], Prefer="respond-async")
    assert {answer.json()["job_id"] for answer in again if answer.status_code == 202} == made


def test_one_key_with_two_bodies_makes_one_mix(two: tuple[Store, list[str]]) -> None:
    store, urls = two
    before = set(store.list("mixes/local"))
    answers = sent_to_both(urls, "mix", [11, 12, 13])
    codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code not in (200, 201)}
    assert codes <= {"idempotency_key_in_use", "idempotency_key_reused"}
    assert codes
    assert len(set(store.list("mixes/local")) - before) == 1


def test_a_damaged_record_counts_as_absent(two: tuple[Store, list[str]]) -> None:
    store, urls = two
    (first,) = {answer.json()["mix_id"] for answer in sent_to_both(urls, "cut", [14]) if answer.status_code < 300}
    for name in store.list("idempotency/local", "*.json"):
        store.write_bytes(f"idempotency/local/{name}", b'{"format_vers')
    again = httpx.post(
        f"{urls[1]}/v1/mixes", **form(task_rows(14, "cut")), headers={"Idempotency-Key": "cut"}, timeout=60
    )
    assert (again.status_code, again.json()["mix_id"]) == (200, first)


def test_a_store_that_is_away_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    scored_store(tmp_path / "local")
    with bucket_server() as bucket, pytest.MonkeyPatch.context() as patch:
        losses = Losses(method="GET", every=False)
        with losing_proxy(bucket, losses) as proxy:
            variables = environment(proxy) | {"AWS_MAX_ATTEMPTS": "2"}
            for name, value in environment(bucket).items():
                patch.setenv(name, value)
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
                assert [httpx.get(f"{url}/readyz").status_code for _ in range(5)] == [200] * 5
                assert len([line for line in losses.lines if "usage" not in line]) <= 4  # the usage log's own apart
