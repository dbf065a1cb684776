"""Downloads as files: ranges, and what the first request leaves in the mix's folder."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.downloads import MixFile
from api.settings import Settings
from api.tenancy.keys import create_key
from curator.errors import MissingError, StoreError
from curator.mix.identity import read_manifest
from curator.mix.verify import verify
from curator.store.store import Store
from tests.api.serving import (
    form,
    json_lines,
    running,
    scored_store,
    task_rows,
)
from tests.mix_stores import wide_records

SPARSE = {"corpus": "chats", "interleave_ratio": 0.01}


@pytest.fixture(params=["files"])
def settings(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a service that sends these small mixes as large ones are sent: as `files`, or else from memory."""
    if request.param == "files":
        monkeypatch.setattr("api.downloads.HELD_BYTES", 0)
    scored_store(tmp_path / "store")
    return Settings(store=str(tmp_path / "store"))


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    with running(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def made(http: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = http.post("/v1/mixes", **form(task_rows(300), SPARSE)).json()
    return document


def names(settings: Settings, tenant: str = "local") -> list[str]:
    """The files of the tenant's mixes, hidden ones too."""
    root = Path(settings.store) / "mixes" / tenant
    return sorted(name for _, _, files in os.walk(root) for name in files)


@pytest.mark.parametrize("settings", ["files", "memory"], indirect=True)
@pytest.mark.parametrize("data_format", ["jsonl", "openai", "parquet"])
def test_ranges_add_up_to_the_file(http: httpx.Client, made: dict[str, Any], data_format: str) -> None:
    link = made["links"][data_format]
    first = http.get(link, headers={"Range": "bytes=0-99"})  # also where nothing was downloaded before
    assert (first.status_code, first.headers["accept-ranges"], len(first.content)) == (206, "bytes", 100)
    whole = http.get(link)
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert first.headers["content-range"] == f"bytes 0-99/{len(whole.content)}"
    rest = http.get(link, headers={"Range": "bytes=100-", "If-Range": whole.headers["etag"]})
    assert (rest.status_code, first.content + rest.content) == (206, whole.content)
    assert http.get(link, headers={"Range": "bytes=-8"}).content == whole.content[-8:]
    for other in ('"other"', f"W/{whole.headers['etag']}"):
        changed = http.get(link, headers={"Range": "bytes=0-99", "If-Range": other})
        assert (changed.status_code, changed.content) == (200, whole.content)
    several = http.get(link, headers={"Range": "bytes=0-1,8-9"})
    assert several.status_code == 206
    assert several.headers["content-type"].startswith("multipart/byteranges")


@pytest.mark.parametrize("settings", ["memory"], indirect=True)
def test_a_small_download_leaves_no_file(http: httpx.Client, made: dict[str, Any], settings: Settings) -> None:
    whole = {name: http.get(made["links"][name]).content for name in ("jsonl", "openai", "parquet")}
    assert names(settings) == ["manifest.json", "mix.parquet"]
    assert hashlib.sha256(whole["jsonl"]).hexdigest() == made["manifest"]["rows_sha256"]
    for name, content in whole.items():  # asked for in part, it becomes a file of the same bytes
        assert http.get(made["links"][name], headers={"Range": "bytes=9-"}).content == content[9:]
    assert names(settings) == ["manifest.json", "mix.jsonl", "mix.openai.jsonl", "mix.parquet"]


@pytest.mark.parametrize("settings", ["files", "memory"], indirect=True)
@pytest.mark.parametrize("data_format", ["jsonl", "openai", "parquet"])
def test_head_tells_what_get_would_send(http: httpx.Client, made: dict[str, Any], data_format: str) -> None:
    link = made["links"][data_format]
    head, whole = http.head(link), http.get(link)
    assert (head.status_code, head.content) == (200, b"")
    told = ("content-length", "content-type", "etag", "accept-ranges", "content-disposition", "last-modified")
    assert [head.headers[name] for name in told] == [whole.headers[name] for name in told]


@pytest.mark.parametrize(
    ("asked", "status", "code"), [("bytes=999999999-", 416, "range_not_satisfiable"), ("lines=1-2", 400, "bad_request")]
)
def test_a_refused_range_has_the_one_error_body(
    http: httpx.Client, made: dict[str, Any], asked: str, status: int, code: str
) -> None:
    size = len(http.get(made["links"]["jsonl"]).content)
    answer = http.get(made["links"]["jsonl"], headers={"Range": asked})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers.get("content-range") == (f"bytes */{size}" if status == 416 else None)


def test_arrow_is_streamed_without_ranges_and_leaves_no_file(
    http: httpx.Client, made: dict[str, Any], settings: Settings
) -> None:
    answer = http.get(made["links"]["arrow"], headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "none")
    assert len(answer.content) > 10
    assert names(settings) == ["manifest.json", "mix.parquet"]


def test_text_formats_become_files_of_the_mix_and_go_with_it(
    http: httpx.Client, made: dict[str, Any], settings: Settings
) -> None:
    manifest = http.get(made["links"]["self"]).content
    first = [http.get(made["links"][name]).content for name in ("jsonl", "openai")]
    assert names(settings) == ["manifest.json", "mix.jsonl", "mix.openai.jsonl", "mix.parquet"]
    assert [http.get(made["links"][name]).content for name in ("jsonl", "openai")] == first
    assert http.get(made["links"]["self"]).content == manifest, "files made later are no part of the manifest"
    assert (
        verify(Store(settings.store).open(create=False), "local", made["mix_id"]).n_rows == made["manifest"]["n_rows"]
    )
    assert http.delete(made["links"]["self"]).status_code == 204
    assert names(settings) == []
    assert http.get(made["links"]["jsonl"]).status_code == 404


def test_the_lines_of_a_large_mix_are_there_before_they_are_asked_for(
    http: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = http.post("/v1/mixes", **form(json_lines(wide_records(2_500)), SPARSE)).json()
    assert names(settings) == ["manifest.json", "mix.jsonl", "mix.parquet"]
    monkeypatch.delattr(MixFile, "render")
    whole = http.get(mix["links"]["jsonl"])
    assert hashlib.sha256(whole.content).hexdigest() == mix["manifest"]["rows_sha256"]
    assert whole.headers["accept-ranges"] == "bytes"
    assert http.delete(mix["links"]["self"]).status_code == 204
    assert names(settings) == []


def test_first_requests_at_once_render_one_file(
    http: httpx.Client, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    render = MixFile.render

    def counted(mix: MixFile, data_format: Any) -> Path:
        rendered.append(data_format)
        return render(mix, data_format)

    monkeypatch.setattr(MixFile, "render", counted)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: http.get(made["links"]["jsonl"]).content, range(6)))
    assert len(set(found)) == 1
    assert rendered == ["jsonl"]


def test_a_mix_deleted_while_it_is_rendered_leaves_no_rows(
    made: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(settings.store).open(create=False)
    mix = MixFile(store, "local", read_manifest(store, "local", made["mix_id"]))
    chunks = MixFile.chunks

    def deleting(self: MixFile, data_format: Any) -> Iterator[bytes]:
        yield from chunks(self, data_format)
        store.delete(f"mixes/local/{made['mix_id']}")

    monkeypatch.setattr(MixFile, "chunks", deleting)
    with pytest.raises(MissingError, match="the mix was deleted"):
        mix.render("jsonl")
    assert names(settings) == []


def test_without_room_for_the_file_the_download_is_streamed(
    http: httpx.Client, made: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(mix: MixFile, data_format: Any) -> Path:
        raise StoreError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(MixFile, "render", full)
        streamed = http.get(made["links"]["jsonl"])
    assert (streamed.status_code, streamed.headers["accept-ranges"]) == (200, "none")
    assert names(settings) == ["manifest.json", "mix.parquet"]
    assert http.get(made["links"]["jsonl"]).content == streamed.content


@pytest.mark.parametrize("settings", ["files", "memory"], indirect=True)
def test_rows_that_are_not_those_of_the_manifest_are_not_sent(
    http: httpx.Client, made: dict[str, Any], settings: Settings
) -> None:
    other = http.post("/v1/mixes", **form(task_rows(300, "other"), SPARSE)).json()
    folder = Path(settings.store) / "mixes" / "local"
    whole = (folder / other["mix_id"] / "mix.parquet").read_bytes()
    (folder / made["mix_id"] / "mix.parquet").write_bytes(whole)
    answer = http.get(made["links"]["jsonl"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    (folder / made["mix_id"] / "mix.parquet").write_bytes(whole[:-1])
    assert http.get(made["links"]["parquet"]).status_code == 500
    (folder / made["mix_id"] / "mix.parquet").unlink()
    assert http.get(made["links"]["parquet"]).status_code == 404
    assert "mix.jsonl" not in names(settings)


def test_files_are_no_way_round_the_tenant(settings: Settings) -> None:
    store_path = Path(settings.store)
    tokens = [create_key(Store(store_path), name, ["mix"])[1] for name in ("anna", "bert")]
    with running(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as http:
        anna, bert = ({"Authorization": f"Bearer {token}"} for token in tokens)
        link = http.post("/v1/mixes", **form(task_rows(300), SPARSE), headers=anna).json()["links"]["jsonl"]
        assert [http.get(link, headers=anna).status_code for _ in "ab"] == [200, 200]
        assert "mix.jsonl" in names(settings, "anna")
        assert http.get(link, headers=bert).status_code == 404
