import asyncio
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.errors import ApiError
from api.service import Service
from api.settings import Settings
from curator.store.store import Store
from tests.api.serving import (
    RECIPE,
    form,
    json_lines,
    running,
    scored_store,
    task_rows,
)

BOUNDARY = "frontier"


def multipart(*parts: tuple[str, bytes], closed: bool = True) -> dict[str, Any]:
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return {"content": body + (f"--{BOUNDARY}--\r\n".encode() if closed else b""), "headers": headers}


FILE = ('name="file"; filename="a.jsonl"', json_lines(task_rows(3)))
ASKED = ('name="recipe"', json.dumps(RECIPE).encode())


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_the_least_multipart_body_is_taken(http: httpx.Client) -> None:
    assert http.post("/v1/mixes", **multipart(FILE, ASKED)).status_code == 201
    assert http.post("/v1/mixes", **multipart(ASKED, FILE)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (multipart(FILE), 422, "missing_part"),
        (multipart(ASKED), 422, "missing_part"),
        (multipart(FILE, ASKED, FILE), 422, "repeated_part"),
        (multipart(FILE, ASKED, ASKED), 422, "repeated_part"),
        (multipart(FILE, ASKED, ('name="other"', b"1")), 422, "unknown_part"),
        (multipart(FILE, ASKED, ('name="on_bad_rows"', b"maybe")), 422, "bad_parameters"),
        (multipart(FILE, ASKED, ('name="format"', b"xml")), 422, "bad_parameters"),
        (multipart(FILE, ('name="recipe"', b"\xff\xfe")), 400, "not_utf8"),
        (multipart(FILE, ('name="recipe"', b" " * 300_000)), 413, "too_large"),
        (multipart(FILE, ASKED, closed=False), 400, "malformed_multipart"),
        ({"content": b"junk", "headers": multipart()["headers"]}, 400, "malformed_multipart"),
        ({"content": b"junk", "headers": {"Content-Type": "multipart/form-data"}}, 400, "malformed_multipart"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "malformed_json"),
        ({"json": {"rows": {}, "recipe": {}}}, 422, "missing_part"),
        ({"json": {"rows": []}}, 422, "missing_part"),
        ({"json": {"rows": [], "recipe": RECIPE}}, 422, "no_rows"),
        ({"json": {"rows": [], "recipe": RECIPE, "extra": 1}}, 422, "unknown_part"),
        ({"json": [1]}, 422, "missing_part"),
        ({"content": b""}, 415, "unsupported_content_type"),
    ],
)
def test_bodies_that_are_refused(http: httpx.Client, body: dict[str, Any], status: int, code: str) -> None:
    assert refusal(http.post("/v1/mixes", **body)) == (status, code)


def test_a_key_given_twice_in_a_json_body_is_refused(http: httpx.Client) -> None:
    body = b'{"rows": [], "rows": [], "recipe": {}}'
    answer = http.post("/v1/mixes", content=body, headers={"Content-Type": "application/json"})
    assert refusal(answer) == (400, "malformed_json")
    assert "twice" in answer.json()["error"]["message"]


@pytest.mark.parametrize("n_bytes", [300_001, 3_000_000, 40_000_000])
def test_an_upload_over_the_bound_meets_the_answer_and_not_a_closed_connection(
    http: httpx.Client, n_bytes: int
) -> None:
    assert refusal(http.post("/v1/mixes", **form(b"x" * n_bytes))) == (413, "too_large")


def test_a_chunked_upload_without_length_is_bounded_too(http: httpx.Client) -> None:
    chunks = (b"x" * 10_000 for _ in range(100))
    answer = http.post("/v1/mixes", content=chunks, headers={"Content-Type": "application/json"})
    assert refusal(answer) == (413, "too_large")
    assert "multipart" in answer.json()["error"]["message"]


def test_too_many_rows(http: httpx.Client) -> None:
    assert refusal(http.post("/v1/mixes", **form(b"{}\n" * 1_001))) == (413, "too_many_rows")


@pytest.mark.parametrize(
    ("query", "remedy"),
    [
        (
            "on_bad_rows=drop",
            "a part of the form, -F on_bad_rows=... or send it as the key on_bad_rows of the JSON body",
        ),
        ("format=jsonl", "a part of the form, -F format=..."),
        ("recipe={}", "the key recipe of the JSON body"),
        ("idempotency_key=x", "the header Idempotency-Key"),
        ("nonsense=1", "no such parameter; this route takes none"),
    ],
)
def test_what_stands_in_the_query_by_mistake_is_sent_to_where_it_belongs(
    http: httpx.Client, query: str, remedy: str
) -> None:
    answer = http.post(f"/v1/mixes?{query}", **multipart(FILE, ASKED))
    assert refusal(answer) == (422, "bad_parameters")
    assert remedy in answer.json()["error"]["message"]


def test_bad_rows_say_how_both_kinds_of_bodies_leave_them_out(http: httpx.Client) -> None:
    message = http.post("/v1/mixes", **form(json_lines(task_rows(2)) + b"{}\n")).json()["error"]["message"]
    assert "-F on_bad_rows=drop" in message
    assert '"on_bad_rows": "drop" in a JSON body' in message


def test_every_bad_row_is_listed_with_place_code_and_remedy(http: httpx.Client) -> None:
    content = json_lines(task_rows(2)) + b'{"messages": [{"role": "robot", "content": "x"}]}\n{"a": 1\n[]\n'
    error = http.post("/v1/mixes", **form(content)).json()["error"]
    assert error["code"] == "bad_rows"
    assert "truncated" not in error
    by_line = {item["line"]: item for item in error["details"]}
    assert set(by_line) == {3, 4, 5}
    assert (by_line[3]["pointer"], by_line[3]["code"]) == ("/messages/0/role", "unrecognized_role")
    assert all(item["message"] for item in error["details"])
    assert error["message"].startswith("3 of 5 rows are bad")


def test_the_list_of_bad_rows_is_capped_and_says_so(http: httpx.Client) -> None:
    error = http.post("/v1/mixes", **form(b"{}\n" * 9)).json()["error"]
    assert (len(error["details"]), error["truncated"]) == (5, True)
    assert error["message"].startswith("9 of 9")


def test_of_a_file_that_is_not_read_to_its_end_the_list_is_capped_too(tmp_path: Path) -> None:
    scored_store(tmp_path)
    with running(Settings(store=str(tmp_path), max_bad_rows=5)) as url:
        error = httpx.post(f"{url}/v1/mixes", **form(b"{}\n" * 10_002, on_bad_rows="drop"), timeout=60).json()["error"]
    assert (error["code"], len(error["details"]), error["truncated"]) == ("bad_rows", 5, True)
    assert error["message"].startswith("10001 of the first 10001 rows are bad, and the rest was not read")


def test_bad_rows_of_a_json_body_are_numbered(http: httpx.Client) -> None:
    body = {"rows": [*task_rows(2), {"messages": 5}], "recipe": RECIPE}
    error = http.post("/v1/mixes", json=body).json()["error"]
    assert [(item["record"], item["line"]) for item in error["details"]] == [(3, None)]


def test_nothing_usable_is_refused_even_when_bad_rows_may_be_dropped(http: httpx.Client) -> None:
    assert refusal(http.post("/v1/mixes", **form(b"{}\n", on_bad_rows="drop"))) == (422, "bad_rows")


def test_a_client_that_leaves_in_the_middle_does_no_harm(http: httpx.Client, url: str, settings: Settings) -> None:
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
        head = "POST /v1/mixes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n{"
        connection.sendall(head.encode())
    assert http.get("/healthz").status_code == 200


def test_builds_beyond_the_places_wait_and_beyond_the_queue_are_told_to_come_back(settings: Settings) -> None:
    small = settings.model_copy(update={"max_builds": 1, "max_waiting_builds": 1})

    async def crowd() -> tuple[list[str], ApiError]:
        service = Service(small, Store(small.store))
        events: list[str] = []

        async def build(name: str) -> None:
            async with service.build_place("local"):
                events.append(f"{name} starts")
                await asyncio.sleep(0.05)
                events.append(f"{name} ends")

        tasks = [asyncio.create_task(build(name)) for name in "ab"]
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="try again later") as caught:
            await build("c")
        await asyncio.gather(*tasks)
        await build("d")
        return events, caught.value

    events, busy = asyncio.run(crowd())
    assert events == [f"{name} {what}" for name in "abd" for what in ("starts", "ends")]
    assert (busy.status, busy.code, busy.headers) == (503, "busy", {"Retry-After": "5"})
