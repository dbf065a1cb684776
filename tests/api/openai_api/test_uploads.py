"""Files in parts: the official client's own way, what is refused, and what is left of an upload."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.openai.uploads import Uploads
from api.settings import Settings
from api.tenancy.keys import create_key
from curator.store.store import Store
from tests.api.openai_api.steps import error_of
from tests.api.serving import json_lines, running, scored_store, task_rows

ABSENT = "upload_" + "0" * 24


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with running(Settings(store=str(root), max_upload_bytes=20_000)) as address:
        yield f"{address}/v1"


def begin(http: httpx.Client, n_bytes: int, **more: Any) -> httpx.Response:
    asked = {"bytes": n_bytes, "filename": "t.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune", **more}
    return http.post("/uploads", json=asked)


def send(http: httpx.Client, upload_id: str, data: bytes) -> httpx.Response:
    return http.post(f"/uploads/{upload_id}/parts", files={"data": ("upload", data)})


def complete(http: httpx.Client, upload_id: str, parts: list[str], **more: str) -> httpx.Response:
    return http.post(f"/uploads/{upload_id}/complete", json={"part_ids": parts, **more})


def test_the_official_client_sends_a_file_in_parts(url: str, root: Path) -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed (pip install 'openai>=3.57')")
    content = json_lines(task_rows(20, "parts"))
    with openai.OpenAI(base_url=url, api_key="none", _strict_response_validation=True) as client:
        made = client.uploads.upload_file_chunked(
            file=content, filename="parts.jsonl", bytes=len(content), mime_type="text/jsonl", purpose="fine-tune",
            part_size=700, md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        )  # fmt: skip
        assert (made.status, made.bytes, made.file.bytes) == ("completed", len(content), len(content))
        assert client.files.content(made.file.id).content == content
        whole = client.files.create(file=("parts.jsonl", content), purpose="fine-tune")
        assert whole.id == made.file.id, "the same file in one piece is the same file"
    assert Store(root).list(f"openai/local/uploads/{made.id}") == ["upload.json"], "the parts are gone"


def test_parts_are_joined_in_the_order_that_is_said_and_a_repeat_finds_what_was_made(http: httpx.Client) -> None:
    content = json_lines(task_rows(12, "order"))
    made = begin(http, len(content), expires_after={"anchor": "created_at", "seconds": 3600}).json()
    assert (made["object"], made["status"], made["expires_at"]) == ("upload", "pending", made["created_at"] + 3600)
    second = send(http, made["id"], content[500:]).json()
    first = send(http, made["id"], content[:500]).json()
    assert (first["object"], first["upload_id"]) == ("upload.part", made["id"])
    assert send(http, made["id"], content[:500]).json()["id"] == first["id"], "a repeated part is the same"
    answer = complete(http, made["id"], [first["id"], second["id"]]).json()
    assert http.get(f"/files/{answer['file']['id']}/content").content == content
    assert answer["file"]["expires_at"] == answer["file"]["created_at"] + 3600
    assert complete(http, made["id"], [first["id"], second["id"]]).json() == answer
    assert error_of(send(http, made["id"], b"x"), 400)["code"] == "invalid_state"
    assert error_of(http.post(f"/uploads/{made['id']}/cancel"), 400)["code"] == "invalid_state"


def test_cancel_drops_the_parts(http: httpx.Client, root: Path) -> None:
    upload_id = begin(http, 10).json()["id"]
    send(http, upload_id, b"12345")
    for _ in range(2):
        assert http.post(f"/uploads/{upload_id}/cancel").json()["status"] == "cancelled"
    assert Store(root).list(f"openai/local/uploads/{upload_id}") == ["upload.json"]
    assert error_of(complete(http, upload_id, ["part-" + "0" * 24]), 400)["code"] == "invalid_state"


def test_what_does_not_fit_is_refused(http: httpx.Client) -> None:
    assert error_of(begin(http, 20_001), 413)["code"] == "too_large"
    assert error_of(begin(http, 10, purpose="batch"), 400)["param"] == "purpose"
    assert error_of(begin(http, 0), 400)["param"] == "bytes"
    content = json_lines(task_rows(12, "unfit"))
    upload_id = begin(http, len(content)).json()["id"]
    part = send(http, upload_id, content[:-1]).json()["id"]
    assert "more than" in error_of(send(http, upload_id, b"xy"), 400)["message"]
    assert error_of(send(http, upload_id, b""), 400)["param"] == "data"
    assert error_of(complete(http, upload_id, [part]), 400)["param"] == "part_ids"
    assert error_of(complete(http, upload_id, ["part-" + "0" * 24]), 400)["param"] == "part_ids"
    rest = send(http, upload_id, content[-1:]).json()["id"]
    assert error_of(complete(http, upload_id, [part, rest], md5="0" * 32), 400)["param"] == "md5"
    assert complete(http, upload_id, [part, rest]).status_code == 200
    assert error_of(http.post(f"/uploads/{upload_id}/parts", content=b"x"), 400)["code"] == "unsupported_content_type"


def test_requests_at_the_same_time_do_not_go_over_an_uploads_size_and_make_one_file(http: httpx.Client) -> None:
    content = json_lines(task_rows(12, "at once"))
    upload_id = begin(http, len(content)).json()["id"]
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda number: send(http, upload_id, content[:-1] + bytes([number])), range(8)))
        assert sorted(answer.status_code for answer in sent) == [200] + [400] * 7
        upload_id = begin(http, len(content)).json()["id"]
        part = send(http, upload_id, content).json()["id"]
        made = list(pool.map(lambda _: complete(http, upload_id, [part]), range(4)))
    assert [answer.status_code for answer in made] == [200] * 4
    assert len({answer.json()["file"]["id"] for answer in made}) == 1


def test_bad_rows_are_refused_at_the_end_with_every_line(http: httpx.Client) -> None:
    content = b"[1]\n" * 12
    upload_id = begin(http, len(content)).json()["id"]
    part = send(http, upload_id, content).json()["id"]
    error = error_of(complete(http, upload_id, [part]), 400)
    assert (error["code"], len([item for item in error["details"] if "line" in item])) == ("invalid_training_file", 12)


def test_uploads_end_after_an_hour(http: httpx.Client, root: Path) -> None:
    upload_id = begin(http, 10).json()["id"]
    uploads = Uploads(Store(root))
    uploads.sweep()
    record = uploads.read("local", upload_id)
    uploads.write("local", record.model_copy(update={"created_s": record.created_s - 3601}))
    assert error_of(send(http, upload_id, b"1"), 404)["param"] == "upload_id"
    uploads.sweep()
    assert upload_id not in Store(root).list("openai/local/uploads")


def test_another_tenants_upload_is_one_that_does_not_exist(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    tokens = {name: create_key(store, name, ["mix"])[1] for name in ("anna", "bert")}
    with running(Settings(store=store.base)) as url:
        anna, bert = (
            httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60)
            for token in tokens.values()
        )
        upload_id = begin(anna, 10).json()["id"]
        for name in (upload_id, ABSENT, "nothing"):
            assert error_of(send(bert, name, b"1"), 404)["message"] == f"No such Upload object: {name}"
            assert error_of(complete(bert, name, ["part-" + "0" * 24]), 404)["code"] == "not_found"
            assert error_of(bert.post(f"/uploads/{name}/cancel"), 404)["code"] == "not_found"
        anna.close()
        bert.close()
