"""Files over the wire of the OpenAI form: what is kept, what is refused and in which words."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.jobs.board import INPUT_FILE, Board, job_path
from api.openai.files import ROWS_FILE, FileRecord, Files
from api.settings import Settings
from api.tenancy.keys import create_key
from curator.store.store import Store
from tests.api.openai_api.steps import error_of
from tests.api.serving import json_lines, running, scored_store, task_rows

ABSENT = "file-" + "0" * 24


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with running(Settings(store=str(root), max_bad_rows=5, max_upload_bytes=200_000)) as address:
        yield f"{address}/v1"


def upload(http: httpx.Client, content: bytes, name: str = "train.jsonl", **fields: str) -> httpx.Response:
    data = {"purpose": "fine-tune", **fields}
    return http.post("/files", files={"file": (name, content)}, data=data)


def test_a_file_comes_back_as_it_was_sent(http: httpx.Client) -> None:
    content = json_lines(task_rows(12, "kept"))
    made = upload(http, content).json()
    assert re.fullmatch(r"file-[0-9a-f]{24}", made["id"])
    assert (made["object"], made["bytes"], made["status"]) == ("file", len(content), "processed")
    assert (made["filename"], made["purpose"]) == ("train.jsonl", "fine-tune")
    assert http.get(f"/files/{made['id']}").json() == made
    answer = http.get(f"/files/{made['id']}/content", headers={"Accept": "application/binary"})
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(content).digest()
    assert upload(http, content).json() == made, "a repeated upload finds its file"
    assert upload(http, content, "other.jsonl").json()["id"] != made["id"]
    gone = http.delete(f"/files/{made['id']}").json()
    assert gone == {"id": made["id"], "object": "file", "deleted": True}
    for path in ("", "/content"):
        error = error_of(http.get(f"/files/{made['id']}{path}"), 404)
        assert error["message"] == f"No such File object: {made['id']}"
    assert error_of(http.delete(f"/files/{made['id']}"), 404)["param"] == "id"


def test_a_repeated_upload_leaves_the_rows_that_a_job_holds_as_they_are(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    files, board = Files(store), Board(store)
    record = FileRecord(file_id=ABSENT, n_bytes=5, created_s=0.0, filename="a.jsonl", purpose="fine-tune")
    source = tmp_path / "rows.parquet"
    source.write_bytes(b"first")
    files.add("default", record, content=b"{}", rows=source)
    kept = store.local_path(f"{files.folder('default', ABSENT)}/{ROWS_FILE}")
    job = board.create("default", "mix", {}, rows=kept)
    source.write_bytes(b"again")
    files.add("default", record, content=b"{}", rows=source)
    assert store.read_bytes(f"{job_path('default', job.job_id)}/{INPUT_FILE}") == b"first"
    assert kept is not None
    assert kept.read_bytes() == b"again"


def test_lists_are_paged_newest_first(http: httpx.Client) -> None:
    made = [upload(http, json_lines(task_rows(10, f"page {n}"))).json()["id"] for n in range(4)]
    first = http.get("/files", params={"limit": 3, "purpose": "fine-tune"}).json()
    assert [item["id"] for item in first["data"]] == made[:0:-1]
    assert (first["object"], first["has_more"], first["last_id"]) == ("list", True, made[1])
    second = http.get("/files", params={"after": first["last_id"], "purpose": "fine-tune"}).json()
    assert second["data"][0]["id"] == made[0]
    assert second["has_more"] is False
    oldest = http.get("/files", params={"order": "asc", "purpose": "fine-tune"}).json()["data"]
    assert [item["id"] for item in oldest][-4:] == made
    assert http.get("/files", params={"purpose": "batch"}).json()["data"] == []
    assert error_of(http.get("/files", params={"after": ABSENT}), 400)["param"] == "after"
    assert error_of(http.get("/files", params={"limit": 0}), 400)["code"] == "invalid_value"


def test_every_bad_row_is_named_and_all_of_them_are_in_the_report(http: httpx.Client) -> None:
    lines = [json.dumps(row) for row in task_rows(10)]
    bad = ["[1, 2]", '{"prompt": "x"}', '{"messages": []}', "{broken", '{"messages": [{"role": "user"}]}', "7", "8"]
    answer = upload(http, "\n".join([*lines, *bad]).encode(), "bad.jsonl")
    error = error_of(answer, 400)
    assert answer.headers["x-should-retry"] == "false"
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "file", "invalid_training_file")
    assert error["message"].startswith(
        "Expected file to have JSONL format, where every line is a valid JSON dictionary. Line starts with: [1, 2]"
    )
    assert "7 of 17 lines are bad" in error["message"]
    assert [fault["line"] for fault in error["details"][:5]] == [11, 12, 13, 14, 15]
    assert error["truncated"] is True
    report = http.get(f"/files/{error['details'][5]['report_file']}/content").text.splitlines()
    assert {json.loads(line)["line"] for line in report} == {11, 12, 13, 14, 15, 16, 17}


def test_many_bad_lines_are_all_in_the_report(http: httpx.Client) -> None:
    """The bound on files of mostly bad rows is that of the report, and not lower."""
    error = error_of(upload(http, b"{}\n" * 12_000, "bad.jsonl"), 400)
    assert "12000 of 12000 lines are bad" in error["message"]
    report = http.get(f"/files/{error['details'][5]['report_file']}/content").text.splitlines()
    assert len({json.loads(line)["line"] for line in report}) == 12_000


def test_too_few_examples_have_their_own_code(http: httpx.Client) -> None:
    error = error_of(upload(http, json_lines(task_rows(9))), 400)
    assert error["code"] == "invalid_n_examples"
    assert error["message"].startswith("Training file has 9 example(s), but must have at least 10 examples")


def test_what_only_our_reader_refuses_is_named_too(http: httpx.Client) -> None:
    row = {**task_rows(1)[0], "tools": [{"type": "function", "function": {"name": "f"}}]}
    error = error_of(upload(http, json_lines([*task_rows(10), row])), 400)
    assert (error["details"][0]["line"], error["details"][0]["code"]) == (11, "tool_definitions")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch"}, "purpose"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after.seconds"),
    ],
)
def test_bad_parameters_are_named(http: httpx.Client, fields: dict[str, str], param: str) -> None:
    error = error_of(upload(http, json_lines(task_rows(10)), **fields), 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_a_file_is_gone_after_its_time(http: httpx.Client, root: Path) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = upload(http, json_lines(task_rows(10, "brief")), **expiry).json()
    assert made["expires_at"] == made["created_at"] + 3600
    files = Files(Store(root))
    files.sweep(grace_s=3600)
    record = files.read("local", made["id"])
    files.add("local", record.model_copy(update={"expires_s": record.created_s - 1}))
    assert http.get(f"/files/{made['id']}").status_code == 404
    files.sweep(grace_s=3600)
    assert not Store(root).exists(f"openai/local/files/{made['id']}")


def test_other_refusals_have_the_shape_and_other_paths_keep_theirs(http: httpx.Client) -> None:
    assert error_of(http.post("/files", json={"purpose": "fine-tune"}), 400)["code"] == "unsupported_content_type"
    assert error_of(http.put("/files"), 405)["code"] == "method_not_allowed"
    assert error_of(http.get("/files/a/b/c"), 404)["code"] == "unknown_route"
    assert error_of(upload(http, b"x" * 300_000), 413)["code"] == "too_large"
    assert error_of(http.get(f"/files/{ABSENT}"), 404)["type"] == "invalid_request_error"
    assert http.head(f"/files/{ABSENT}").status_code == 404
    assert set(http.get("/mixes/x").json()["error"]) == {"code", "message", "details"}


def test_another_tenants_file_is_one_that_does_not_exist(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    tokens = {name: create_key(store, name, ["mix"])[1] for name in ("anna", "bert")}
    with running(Settings(store=store.base)) as url:
        clients = {
            name: httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60)
            for name, token in tokens.items()
        }
        made = upload(clients["anna"], json_lines(task_rows(10))).json()
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            foreign = clients["bert"].request(method, f"/files/{made['id']}{path}")
            assert error_of(foreign, 404)["message"] == f"No such File object: {made['id']}"
        assert clients["bert"].get("/files").json()["data"] == []
        error = error_of(httpx.get(f"{url}/v1/files"), 401)
        assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
        for client in clients.values():
            client.close()
