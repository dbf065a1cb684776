"""POST /v1/checks: what `doctor` says of a file, by HTTP; with a corpus, its model's template and window too."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from curator.audit.doctor import DoctorOptions, examine
from curator.client import Client
from curator.render import Renderer
from curator.store.store import Store
from tests.api.serving import started
from tests.mix_stores import scored_store
from tests.models import tiny_tokenizer_folder


def turns(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


GOOD, LOOPED = turns("What is a tree?", "A tall plant of wood."), turns("Laugh.", "ha ha ha ha ha ha")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checks")
    store = scored_store(folder)
    renderer = Renderer.from_folder(tiny_tokenizer_folder(folder / "tokenizer"))
    renderer.save(store)
    for path in (folder / "scores").glob("*/*/scorer.json"):  # the store's scorers are made up: give them this renderer
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "renderer_id": renderer.renderer_id}))
    return folder


@pytest.fixture
def client(root: Path) -> Any:
    with TestClient(create_app(Settings(store=str(root))), base_url="http://localhost") as client:
        yield client


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(*rows: Any) -> bytes:
    pq.write_table(pa.Table.from_pylist(list(rows)), file := io.BytesIO())
    return file.getvalue()


def test_a_file_is_looked_at_as_the_command_does(client: TestClient, tmp_path: Path) -> None:
    data = lines(GOOD, GOOD, LOOPED) + b'{"messages": [\n'
    answer = client.post("/v1/checks", files={"file": ("task.jsonl", data)})
    assert answer.status_code == 200, answer.text
    (path := tmp_path / "task.jsonl").write_bytes(data)
    assert answer.json() == json.loads(json.dumps(examine(path, DoctorOptions()).as_dict()))
    assert {item["code"]: item["n_rows"] for item in answer.json()["findings"]} == {
        "bad_rows": 1, "duplicate": 1, "looped": 1,
    }  # fmt: skip


def test_a_corpus_adds_tokens_and_rows_of_json_are_taken(client: TestClient, root: Path) -> None:
    corpus = Store(root).open(create=False).list("corpora")[0]
    answer = client.post("/v1/checks", json={"rows": [GOOD, LOOPED], "check": {"corpus": corpus, "openai": True}})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["lengths"]["n_rows"] == 2
    assert [item["code"] for item in found["openai"]] == ["invalid_n_examples"]
    assert client.post("/v1/checks", json={"rows": [GOOD], "check": {}}).json()["ok"] is True


@pytest.mark.parametrize(
    ("check", "code"),
    [({"corpus": "absent"}, "not_found"), ({"corpse": "chats"}, "bad_input"), ({"corpus": 5}, "bad_input")],
)
def test_what_cannot_be_looked_for_is_refused(client: TestClient, check: dict[str, Any], code: str) -> None:
    answer = client.post("/v1/checks", json={"rows": [GOOD], "check": check})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


def test_the_client_checks_a_file(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(lines(GOOD, LOOPED))
    with started(root) as (_, url), Client(url) as client:
        found = client.check(path)
    assert (found["name"], found["n_rows"], found["ok"]) == ("task.jsonl", 2, False)


@pytest.mark.parametrize("name", ["task.csv", "task.jsonl.gz", "task.parquet"])
def test_a_file_of_another_format_is_read_under_the_name_that_its_sender_gave(client: TestClient, name: str) -> None:
    data = {
        "task.csv": b"prompt,completion\nWhat is a tree?,A tall plant of wood.\n",
        "task.jsonl.gz": gzip.compress(lines(GOOD)),
        "task.parquet": parquet(GOOD),
    }[name]
    found = client.post("/v1/checks", files={"file": (name, data)}).json()
    assert (found["name"], found["n_rows"], found["ok"]) == (name, 1, True)


def test_a_file_of_bad_rows_alone_is_diagnosed_as_far_as_it_is_read(client: TestClient) -> None:
    data = lines(GOOD, LOOPED) + b'{"text": "no conversation"}\n' * 10_500
    answer = client.post("/v1/checks", files={"file": ("task.jsonl", data)}, data={"check": '{"openai": true}'})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["n_records"], found["n_rows"], found["n_bad"], found["ok"]) == (10_003, 2, 10_001, False)
    assert found["bad_codes"] == {"missing_messages_list": 10_001}
    assert {item["code"]: item["n_rows"] for item in found["findings"]} == {"bad_rows": 10_001, "looped": 1}
    assert found["stopped"].startswith("10001 of the first 10003 rows are bad, and the rest was not read")
    assert client.post("/v1/checks", files={"file": ("task.jsonl", lines(GOOD))}).json()["stopped"] is None


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("1", "data_type"),
        ('[{"prompt": "a", "completion": "b"}]', "data_type"),
        ('{"prompt": "a", "completion": "\\ud800"}', "invalid_unicode"),
        ('{"prompt": "a", "completion": ' + "9" * 100 + "}", "missing_content"),
        ('{"prompt": "a", "completion": 1e400}', "invalid_json"),
    ],
)
def test_a_row_of_a_json_body_is_judged_as_a_line_of_a_file(client: TestClient, row: str, code: str) -> None:
    body = f'{{"rows": [{row}, {json.dumps(GOOD)}]}}'
    answer = client.post("/v1/checks", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["n_rows"], answer.json()["bad_codes"]) == (1, {code: 1})


def test_the_document_says_that_the_check_may_be_left_out(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    required = {
        path: [kind["schema"]["required"] for kind in paths[path]["post"]["requestBody"]["content"].values()]
        for path in ("/v1/checks", "/v1/mixes", "/v1/audits")
    }
    assert required == {
        "/v1/checks": [["file"], ["rows"]],
        "/v1/mixes": [["file", "recipe"], ["rows", "recipe"]],
        "/v1/audits": [["file", "audit"], ["rows", "audit"]],
    }
    assert client.post("/v1/checks", json={"rows": [GOOD]}).status_code == 200


def test_a_file_that_unpacks_to_too_much_is_refused(root: Path) -> None:
    settings = Settings(store=str(root), max_unpacked_bytes=1_000)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        answer = client.post("/v1/checks", files={"file": ("task.jsonl.gz", gzip.compress(lines(GOOD) * 50))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "unpacked_too_large")
