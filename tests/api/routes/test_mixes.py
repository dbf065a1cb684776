import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.mix.files import row_lines, rows_sha256
from tests.api.serving import (
    RECIPE,
    form,
    json_lines,
    task_rows,
)

N_TASK = 50
N_MIX = 55
OPENAI_ROLES = {"system", "user", "assistant", "tool"}


@pytest.fixture
def created(http: httpx.Client) -> dict[str, Any]:
    answer = http.post("/v1/mixes", **form(task_rows(N_TASK)))
    assert answer.status_code in (200, 201), answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.fixture
def mix(created: dict[str, Any]) -> str:
    return f"/v1/mixes/{created['mix_id']}"


def test_a_new_mix_is_201_with_location_and_the_same_request_again_200(http: httpx.Client) -> None:
    first = http.post("/v1/mixes", **form(task_rows(7, "only here")))
    again = http.post("/v1/mixes", **form(task_rows(7, "only here")))
    assert (first.status_code, again.status_code) == (201, 200)
    assert (first.json()["created"], again.json()["created"]) == (True, False)
    assert first.json()["mix_id"] == again.json()["mix_id"]
    assert first.headers["location"] == f"/v1/mixes/{first.json()['mix_id']}" == first.json()["links"]["self"]
    assert http.get(first.headers["location"]).json() == first.json()["manifest"]


def test_json_rows_yaml_and_json_recipes_and_a_json_array_give_one_mix(
    http: httpx.Client, created: dict[str, Any]
) -> None:
    rows = task_rows(N_TASK)
    as_array = form(json.dumps(rows).encode())
    as_yaml = form(rows) | {"data": {"recipe": "corpus: chats\ninterleave_ratio: 0.1\n"}}
    answers = [http.post("/v1/mixes", json={"rows": rows, "recipe": RECIPE})]
    answers += [http.post("/v1/mixes", **body) for body in (as_array, as_yaml)]
    assert [answer.json().get("mix_id") for answer in answers] == [created["mix_id"]] * 3


def test_the_rows_asked_for_are_mixed_in(created: dict[str, Any]) -> None:
    manifest = created["manifest"]
    assert (manifest["n_rows"], manifest["n_safe"], manifest["task"]["n_rows"]) == (N_MIX, 5, N_TASK)


def test_every_link_leads_somewhere(http: httpx.Client, created: dict[str, Any]) -> None:
    assert {http.get(link).status_code for link in created["links"].values()} == {200}


def test_manifest_has_a_strong_etag_of_its_bytes(http: httpx.Client, mix: str) -> None:
    answer = http.get(mix)
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    unchanged = http.get(mix, headers={"If-None-Match": answer.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == answer.headers["etag"]
    assert http.get(mix, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("limit", [1, 7, 20, 999])
def test_pages_cover_every_row_once_in_order(http: httpx.Client, mix: str, limit: int) -> None:
    rows: list[dict[str, Any]] = []
    after: int | None = -1
    while after is not None:
        page = http.get(f"{mix}/rows", params={"limit": limit, "after": after}).json()
        assert len(page["rows"]) <= min(limit, 20), "the service's own bound of a page"
        assert page["n_rows"] == N_MIX
        rows += page["rows"]
        after = page["next_after"]
    assert [row["position"] for row in rows] == list(range(N_MIX))
    lines = http.get(f"{mix}/data").text.splitlines()
    assert rows == [json.loads(line) for line in lines]


@pytest.mark.parametrize("after", [N_MIX - 1, N_MIX, 10**12])
def test_a_page_behind_the_end_is_empty(http: httpx.Client, mix: str, after: int) -> None:
    page = http.get(f"{mix}/rows", params={"after": after}).json()
    assert (page["rows"], page["next_after"]) == ([], None)


def test_pages_cross_row_groups(http: httpx.Client, mix: str, store_path: Path) -> None:
    path = store_path / "mixes" / "local" / mix.rsplit("/", 1)[1] / "mix.parquet"
    original = path.read_bytes()
    try:
        pq.write_table(pq.read_table(path), path, row_group_size=4)
        page = http.get(f"{mix}/rows", params={"after": 5, "limit": 7}).json()
    finally:
        path.write_bytes(original)
    assert [row["position"] for row in page["rows"]] == list(range(6, 13))


def test_pages_have_entity_tags(http: httpx.Client, mix: str) -> None:
    tag = http.get(f"{mix}/rows", params={"limit": 3}).headers["etag"]
    asked = {"If-None-Match": tag}
    assert http.get(f"{mix}/rows", params={"limit": 3}, headers=asked).status_code == 304
    assert http.get(f"{mix}/rows", params={"limit": 4}, headers=asked).status_code == 200


def test_jsonl_is_byte_for_byte_what_the_manifest_hashes(http: httpx.Client, created: dict[str, Any], mix: str) -> None:
    answer = http.get(f"{mix}/data", params={"format": "jsonl"})
    digest = hashlib.sha256(answer.content).hexdigest()
    assert digest == created["manifest"]["rows_sha256"]
    assert answer.headers["etag"] == f'"{digest}"'
    safe = [row for row in map(json.loads, answer.text.splitlines()) if row["origin"] == "safe"]
    assert len(safe) == 5
    assert {row["rank"] for row in safe} == {1, 2, 3, 4, 5}
    assert all(row["corpus"] == "chats" and len(row["losses"]) == 2 for row in safe)


def test_parquet_is_the_stored_file(http: httpx.Client, created: dict[str, Any], mix: str) -> None:
    answer = http.get(f"{mix}/data", params={"format": "parquet"})
    receipt = created["manifest"]["files"][0]
    assert hashlib.sha256(answer.content).hexdigest() == receipt["sha256"] == answer.headers["etag"].strip('"')
    assert int(answer.headers["content-length"]) == receipt["bytes"]
    assert pq.read_table(io.BytesIO(answer.content)).num_rows == N_MIX


def test_arrow_holds_the_same_rows(http: httpx.Client, created: dict[str, Any], mix: str) -> None:
    answer = http.get(f"{mix}/data", params={"format": "arrow"})
    table = pa.ipc.open_stream(answer.content).read_all()
    assert rows_sha256(row_lines(table)) == created["manifest"]["rows_sha256"]
    assert answer.headers["etag"].startswith("W/")


def test_openai_lines_pass_the_checks_of_its_fine_tuning_guide(http: httpx.Client, mix: str) -> None:
    answer = http.get(f"{mix}/data", params={"format": "openai"})
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert len(rows) == N_MIX
    for row in rows:
        assert set(row) == {"messages"}
        assert any(message["role"] == "assistant" for message in row["messages"])
        for message in row["messages"]:
            assert message["role"] in OPENAI_ROLES
            assert isinstance(message["content"], str)
            assert set(message) <= {"role", "content", "name", "weight", "tool_calls", "tool_call_id"}


@pytest.mark.parametrize("data_format", ["jsonl", "parquet", "arrow", "openai"])
def test_downloads_answer_304_and_head(http: httpx.Client, mix: str, data_format: str) -> None:
    link = f"{mix}/data?format={data_format}"
    whole = http.get(link)
    assert f"mix-{mix.rsplit('/', 1)[1]}" in whole.headers["content-disposition"]
    assert http.get(link, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    head = http.head(link)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", whole.headers["etag"])


@pytest.mark.parametrize("path", ["/v1/mixes", "/v1/corpora", "{mix}", "{mix}/rows", "/healthz"])
def test_head_answers_as_get_without_a_body(http: httpx.Client, mix: str, path: str) -> None:
    link = path.format(mix=mix)
    whole, head = http.get(link), http.head(link)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag"):
        assert head.headers.get(name) == whole.headers.get(name)
    assert http.head(f"{link}/absent").status_code == 404


def test_ranges_of_parquet_add_up_to_the_file(http: httpx.Client, mix: str) -> None:
    link = f"{mix}/data?format=parquet"
    whole = http.get(link)
    size = len(whole.content)
    first = http.get(link, headers={"Range": "bytes=0-99", "If-Range": whole.headers["etag"]})
    rest = http.get(link, headers={"Range": "bytes=100-"})
    assert (first.status_code, rest.status_code) == (206, 206)
    assert first.headers["content-range"] == f"bytes 0-99/{size}"
    assert first.content + rest.content == whole.content
    assert http.get(link, headers={"Range": "bytes=-8"}).content == whole.content[-8:]
    changed = http.get(link, headers={"Range": "bytes=0-99", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, whole.content)


def test_a_range_past_the_end_is_416(http: httpx.Client, mix: str) -> None:
    answer = http.get(f"{mix}/data?format=parquet", headers={"Range": "bytes=999999-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"].startswith("bytes */")
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


def test_list_pages_by_id(http: httpx.Client) -> None:
    made = {http.post("/v1/mixes", **form(task_rows(4, f"list {n}"))).json()["mix_id"] for n in range(3)}
    whole = http.get("/v1/mixes").json()
    ids = [item["mix_id"] for item in whole["mixes"]]
    assert ids == sorted(ids)
    assert made <= set(ids)
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = http.get("/v1/mixes", params={"limit": 2, "after": after}).json()
        found += [item["mix_id"] for item in page["mixes"]]
        after = page["next_after"]
    assert found == ids
    assert whole["mixes"][0]["status"] == "complete"


def test_a_deleted_mix_is_gone_and_can_be_made_again(http: httpx.Client) -> None:
    made = http.post("/v1/mixes", **form(task_rows(6, "to go"))).json()
    link = made["links"]["self"]
    assert http.delete(link).status_code == 204
    assert {http.get(link).status_code, http.delete(link).status_code, http.get(f"{link}/rows").status_code} == {404}
    assert made["mix_id"] not in http.get("/v1/mixes").text
    again = http.post("/v1/mixes", **form(task_rows(6, "to go")))
    assert (again.status_code, again.json()["mix_id"]) == (201, made["mix_id"])


def test_one_request_sent_by_many_at_once_makes_one_mix(http: httpx.Client) -> None:
    body = form(task_rows(30, "together"))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/mixes", **body), range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["mix_id"] for answer in answers}) == 1


def test_bad_rows_are_dropped_only_when_asked(http: httpx.Client) -> None:
    content = json_lines(task_rows(6, "half good")) + b'{"messages": []}\nnot json\n'
    refused = http.post("/v1/mixes", **form(content))
    assert refused.status_code == 422
    dropped = http.post("/v1/mixes", **form(content, on_bad_rows="drop"))
    assert dropped.status_code == 201
    report = dropped.json()["dropped"]
    assert (report["n_rows"], report["truncated"]) == (2, False)
    assert [item["line"] for item in report["details"]] == [7, 8]
    assert dropped.json()["manifest"]["task"]["n_rejected"] == 2


def test_uploads_leave_nothing_behind(http: httpx.Client, settings: Any) -> None:
    http.post("/v1/mixes", **form(task_rows(5)))
    http.post("/v1/mixes", **form(b"junk"))
    assert list(Path(settings.temp_dir).iterdir()) == []


def test_a_weak_tag_deletes_nothing(http: httpx.Client) -> None:
    link = http.post("/v1/mixes", **form(task_rows(6, "weakly matched"))).json()["links"]["self"]
    tag = http.get(link).headers["etag"]
    weak = http.delete(link, headers={"If-Match": f"W/{tag}"})
    assert (weak.status_code, weak.json()["error"]["code"]) == (412, "precondition_failed")
    assert http.delete(link, headers={"If-Match": f'"other", {tag}'}).status_code == 204
