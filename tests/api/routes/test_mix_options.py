"""Packed uploads, previews, Idempotency-Key, expiry and conditional deletes."""

import gzip
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from api.settings import Settings
from tests.api.serving import (
    RECIPE,
    form,
    json_lines,
    running,
    task_rows,
)

ROWS = task_rows(20, "packed")


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:  # the same store, with a bound on unpacking
    with running(settings.model_copy(update={"max_unpacked_bytes": 400_000})) as address:
        yield address


def mixes(http: httpx.Client) -> list[str]:
    return [item["mix_id"] for item in http.get("/v1/mixes", params={"limit": 20}).json()["mixes"]]


def test_packed_uploads_give_the_mix_of_the_plain_file(http: httpx.Client) -> None:
    plain = json_lines(ROWS)
    packed = [plain, gzip.compress(plain), zstandard.compress(plain)]
    answers = [http.post("/v1/mixes", **form(content)) for content in packed]
    assert {answer.json()["mix_id"] for answer in answers} == {answers[0].json()["mix_id"]}


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_bomb_is_refused_at_the_bound(http: httpx.Client, pack: Any) -> None:
    bomb = pack((b'{"messages": "' + b"x" * 100_000 + b'"}\n') * 500)
    assert len(bomb) < 300_000
    answer = http.post("/v1/mixes", **form(bomb))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "unpacked_too_large")


@pytest.mark.parametrize(
    "cut",
    [b"\x1f\x8b\x08", gzip.compress(b"x" * 1000, mtime=0)[:-9], zstandard.compress(b"x" * 999)[:-3]],
    ids=["gzip header", "gzip", "zstd"],  # bytes that hold the time would name a test differently in each worker
)
def test_damaged_packs_are_refused(http: httpx.Client, cut: bytes) -> None:
    assert http.post("/v1/mixes", **form(cut)).status_code == 422


def test_a_preview_tells_what_the_mix_will_be_and_stores_nothing(http: httpx.Client) -> None:
    before = mixes(http)
    body = form(task_rows(30, "looked at"))
    preview = http.post("/v1/mixes/preview", **body)
    assert preview.status_code == 200, preview.text
    assert mixes(http) == before
    reported = preview.json()
    assert reported["cost"] == {
        "extra_rows": 3, "extra_rows_share": pytest.approx(0.1), "extra_tokens": None, "extra_tokens_share": None
    }  # fmt: skip
    made = http.post("/v1/mixes", **body)
    assert made.status_code == 201
    manifest = made.json()["manifest"]
    assert {key: value for key, value in reported["manifest"].items() if key != "files"} == {
        key: value for key, value in manifest.items() if key != "files"
    }


def test_a_preview_refuses_what_a_mix_refuses(http: httpx.Client) -> None:
    refused = [http.post(path, **form(b"junk")) for path in ("/v1/mixes/preview", "/v1/mixes")]
    assert [answer.status_code for answer in refused] == [422, 422]
    assert refused[0].json() == refused[1].json()
    assert http.post("/v1/mixes/preview", **form(task_rows(1), {"corpus": "nowhere"})).status_code == 422


def test_a_key_gives_the_first_answer_again(http: httpx.Client) -> None:
    key = {"Idempotency-Key": "one"}
    first = http.post("/v1/mixes", **form(task_rows(8, "once")), headers=key)
    again = http.post("/v1/mixes", **form(task_rows(8, "once")), headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    other = http.post("/v1/mixes", **form(task_rows(9, "once")), headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    as_json = {"rows": task_rows(8, "once"), "recipe": RECIPE}
    for status in (200, 200):
        assert http.post("/v1/mixes", json=as_json, headers={"Idempotency-Key": "two"}).status_code == status
    http.delete(first.json()["links"]["self"])
    rebuilt = http.post("/v1/mixes", **form(task_rows(8, "once")), headers=key)
    assert (rebuilt.status_code, rebuilt.json()["mix_id"]) == (201, first.json()["mix_id"])
    assert "idempotency-replayed" not in rebuilt.headers


def test_a_key_beside_an_integer_of_any_size(http: httpx.Client) -> None:
    body = {"rows": ROWS, "recipe": {**RECIPE, "seed": 10**30}}
    answer = http.post("/v1/mixes", json=body, headers={"Idempotency-Key": "huge"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_recipe")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_keys_out_of_range(http: httpx.Client, key: str) -> None:
    assert http.post("/v1/mixes", **form(task_rows(2)), headers={"Idempotency-Key": key}).status_code == 422


def test_delete_only_if_unchanged(http: httpx.Client) -> None:
    link = http.post("/v1/mixes", **form(task_rows(6, "kept"))).json()["links"]["self"]
    refused = http.delete(link, headers={"If-Match": '"other"'})
    assert (refused.status_code, refused.json()["error"]["code"]) == (412, "precondition_failed")
    assert http.delete(link, headers={"If-Match": http.get(link).headers["etag"]}).status_code == 204


def test_an_expired_mix_is_gone_for_every_reader_and_then_from_the_disk(settings: Settings, store_path: Path) -> None:
    brief = settings.model_copy(update={"mix_ttl_s": 3_600.0})
    with running(brief) as url, httpx.Client(base_url=url, timeout=30) as http:
        body = form(task_rows(11, "brief"))
        made = http.post("/v1/mixes", **body).json()
        folder = store_path / "mixes" / "local" / made["mix_id"]
        assert http.get(made["links"]["self"]).status_code == 200
        long_ago = time.time() - 4_000
        os.utime(folder / "manifest.json", (long_ago, long_ago))
        assert {http.get(link).status_code for link in made["links"].values()} == {404}
        assert made["mix_id"] not in mixes(http)
        again = http.post("/v1/mixes", **body)
        assert (again.status_code, again.json()["mix_id"]) == (201, made["mix_id"])
        os.utime(folder / "manifest.json", (long_ago, long_ago))
    with running(brief):  # the next start tidies up
        deadline = time.monotonic() + 10
        while folder.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
