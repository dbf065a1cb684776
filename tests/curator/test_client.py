import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from api.settings import Settings
from curator.client import Client, DataSet, ServiceError
from curator.errors import (
    BadInputError,
    IntegrityError,
    MissingError,
    RemoteError,
)
from curator.mix.files import DATA_FORMATS, DataFormat
from tests.api.serving import (
    RECIPE,
    json_lines,
    running,
    scored_store,
    task_rows,
)
from tests.loopback import QuietHandler, serving

Document = dict[str, Any]
ABSENT = "0" * 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client")
    scored_store(path)
    return path


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with running(Settings(store=str(root), max_page_rows=20)) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, retries=1) as found:
        yield found


@pytest.fixture
def mix(client: Client) -> Document:
    return client.create_mix(task_rows(50), RECIPE)


def test_a_file_and_the_same_rows_give_one_mix(client: Client, mix: Document, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(json_lines(task_rows(50)))
    for data in (path, str(path)):
        again = client.create_mix(data, RECIPE)
        assert (again["created"], again["mix_id"]) == (False, mix["mix_id"])


def test_manifest_list_and_rows(client: Client, mix: Document) -> None:
    assert client.manifest(mix["mix_id"]) == mix["manifest"]
    assert mix["mix_id"] in [item["mix_id"] for item in client.list_mixes()]
    rows = list(client.iter_rows(mix["mix_id"]))
    assert [row["position"] for row in rows] == list(range(55))
    assert list(client.iter_rows(mix["mix_id"], page_rows=3)) == rows


def test_corpora_gap_and_health(client: Client) -> None:
    assert [item["corpus"] for item in client.corpora()] == ["chats"]
    assert len(client.corpus("chats")["scorers"]) == 2
    assert client.gap("chats", score="gap_abs", bins=3)["score"] == "gap_abs"
    assert client.health()["status"] == "ok"
    assert client.ready() == {"status": "ready"}


def test_previews_keys_and_progress(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(json_lines(task_rows(12, "told")))
    preview = client.preview_mix(path, RECIPE)
    sizes: list[int] = []
    made = [client.create_mix(path, RECIPE, idempotency_key="k", advance=sizes.append) for _ in "ab"]
    assert made[0] == made[1]
    assert made[0]["created"]
    assert made[0]["mix_id"] == preview["manifest"]["mix_id"]
    assert sum(sizes) == 2 * path.stat().st_size
    assert client.preview_mix(task_rows(12, "told"), RECIPE)["cost"] == preview["cost"]


def test_sql_and_named_queries(client: Client) -> None:
    assert client.sql("select count(*) as n from gap")["rows"] == [{"n": 60}]
    assert client.sql_bytes("select 1 as a", "csv") == b"a\n1\n"
    assert client.query_bytes("top_by_gap", "csv", max_rows=1, n=2).count(b"\n") == 2
    assert client.sql_bytes("select * from range(3)", "csv", max_rows=2) == b"range\n0\n1\n"
    for call in (lambda: client.sql_bytes("select * from range(30000)", "csv"),
                 lambda: client.sql_bytes("select * from range(30000)", "csv", max_rows=20_000)):  # fmt: skip
        with pytest.raises(ServiceError, match="after 10000 rows") as cut:
            call()
        assert cut.value.code == "truncated"
    assert "top_by_gap" in [item["name"] for item in client.queries()]
    assert client.query("top_by_gap", n=2)["n_rows"] == 2
    with pytest.raises(ServiceError, match="here") as caught:
        client.sql("from read_text('/etc/passwd'), mixes")
    assert caught.value.status == 422


@pytest.mark.parametrize("data_format", DATA_FORMATS)
def test_downloads_are_verified_and_named_last(
    client: Client, mix: Document, tmp_path: Path, data_format: DataFormat
) -> None:
    sizes: list[int] = []
    path = client.download(mix["mix_id"], tmp_path / "mix", data_format, advance=sizes.append)
    assert path.stat().st_size == sum(sizes) > 0
    assert list(tmp_path.iterdir()) == [path]


def test_jsonl_rows_are_those_of_the_pages(client: Client, mix: Document, tmp_path: Path) -> None:
    path = client.download(mix["mix_id"], tmp_path / "mix.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == list(client.iter_rows(mix["mix_id"]))


@pytest.mark.parametrize("data_format", DATA_FORMATS)
def test_a_download_that_differs_from_its_manifest_leaves_no_file(
    client: Client, root: Path, tmp_path: Path, data_format: DataFormat
) -> None:
    # Larger than what the service makes anew, and checks, for each download.
    made = client.create_mix(task_rows(9, f"altered {data_format}" + " word" * 60_000), RECIPE)
    client.download(made["mix_id"], tmp_path / "mix", data_format)
    manifest = root / "mixes" / "local" / made["mix_id"] / "manifest.json"
    document = json.loads(manifest.read_text())
    document["rows_sha256"] = "0" * 64
    document["files"][0]["sha256"] = "0" * 64
    document["n_rows"] += 1
    manifest.write_text(json.dumps(document))
    target = tmp_path / "mix"
    target.write_text("kept")
    with pytest.raises(IntegrityError, match="is not what its manifest says"):
        client.download(made["mix_id"], target, data_format)
    assert [path.name for path in tmp_path.iterdir()] == ["mix"]
    assert target.read_text() == "kept"


def test_delete(client: Client) -> None:
    made = client.create_mix(task_rows(3, "to go"), RECIPE)
    client.delete_mix(made["mix_id"])
    with pytest.raises(ServiceError, match="no such mix"):
        client.manifest(made["mix_id"])


def test_a_refusal_carries_status_code_and_details(client: Client) -> None:
    with pytest.raises(RemoteError, match="1 of 1 rows are bad") as caught:
        client.create_mix([{"messages": []}], RECIPE)
    error = caught.value
    assert isinstance(error, ServiceError)
    assert (error.status, error.code) == (422, "bad_rows")
    assert [item["code"] for item in error.details if isinstance(item, dict)] == ["empty_messages_list"]
    made = client.create_mix(DataSet([{"messages": []}, *task_rows(2, "left")], on_bad_rows="drop"), RECIPE)
    assert made["dropped"]["n_rows"] == 1


@pytest.mark.parametrize("name", [ABSENT, "../../store.json", "a b", "%00", "x?y#z"])
def test_names_are_kept_inside_their_place_in_the_path(client: Client, name: str) -> None:
    with pytest.raises(ServiceError, match="no such") as caught:
        client.corpus(name)
    assert caught.value.status == 404


def test_a_file_that_cannot_be_read_or_written_is_one_clear_error(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's error is put in place of permissions, which do not bind root."""
    path = tmp_path / "task.jsonl"
    path.write_text("{}\n")
    whole = Path.open

    def denied(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)
    for send in (client.check, lambda data: client.create_mix(data, {"corpus": "chats"})):
        with pytest.raises(BadInputError, match=r"task.jsonl cannot be read: Permission denied$"):
            send(path)
    with pytest.raises(BadInputError, match=r"cannot be read: File name too long$"):
        client.check(tmp_path / ("a" * 300))
    with pytest.raises(BadInputError, match=r"x.jsonl cannot be written"):
        client.download("0" * 32, tmp_path / "nofolder" / "x.jsonl")


def test_what_cannot_work_is_refused_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no file"):
        client.create_mix(tmp_path / "absent.jsonl", RECIPE)
    with pytest.raises(BadInputError, match="none of jsonl"):
        client.download(ABSENT, tmp_path / "mix", "csv")  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="cannot be written"):
        client.download(ABSENT, tmp_path)
    with pytest.raises(BadInputError, match="not an address of a service"):
        Client("ftp://example.org")


Script = list[Callable[[BaseHTTPRequestHandler], None]]


def status(code: int, body: bytes = b"{}", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def break_off(handler: BaseHTTPRequestHandler) -> None:
    status(200, b"", Content_Length="1000")(handler)
    handler.wfile.write(b"half")
    handler.close_connection = True


@contextmanager
def scripted(script: Script) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers its n-th request by the n-th entry of a script; yields address and bodies received."""
    bodies: list[bytes] = []

    class Handler(QuietHandler):
        def serve(self) -> None:
            bodies.append(self.body())
            script[len(bodies) - 1](self)

    with serving(Handler) as server:
        yield server.url, bodies


@pytest.mark.parametrize("failure", [status(502), status(503, Retry_After="0"), status(504), hang_up, break_off])
def test_passing_failures_are_tried_again(failure: Callable[[BaseHTTPRequestHandler], None]) -> None:
    with (
        scripted([failure, failure, status(200, b'{"status": "ok"}')]) as (url, seen),
        Client(url, retries=2) as client,
    ):
        assert client.health() == {"status": "ok"}
        assert len(seen) == 3


def test_an_upload_is_sent_whole_each_time(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(json_lines(task_rows(4)))
    with scripted([status(503), status(201, b'{"mix_id": "x"}')]) as (url, seen), Client(url) as client:
        client.create_mix(path, RECIPE)
    assert len(seen) == 2
    assert all(path.read_bytes() in body for body in seen)


def test_a_download_that_breaks_off_starts_over(mix: Document, client: Client, tmp_path: Path) -> None:
    whole = client.download(mix["mix_id"], tmp_path / "whole").read_bytes()
    manifest = json.dumps(mix["manifest"]).encode()
    script: Script = [status(200, manifest), break_off, status(200, whole)]
    with scripted(script) as (url, _), Client(url) as other:
        assert other.download(mix["mix_id"], tmp_path / "again").read_bytes() == whole


@pytest.mark.parametrize("code", [400, 404, 409, 500])
def test_other_refusals_are_final(code: int) -> None:
    body = b'{"error": {"code": "c", "message": "a reason", "details": [1]}}'
    with scripted([status(code, body)]) as (url, seen), Client(url, retries=3) as client:
        with pytest.raises(ServiceError, match="a reason") as caught:
            client.health()
        assert (caught.value.status, caught.value.code, caught.value.details) == (code, "c", [1])
        assert len(seen) == 1


def test_after_the_last_attempt_the_reason_is_told() -> None:
    with scripted([status(503, b"busy")] * 2) as (url, seen), Client(url, retries=1) as client:
        with pytest.raises(ServiceError, match="answered 503 in no known shape"):
            client.health()
        assert len(seen) == 2


@pytest.mark.parametrize("body", [b"<html>", b"[1]"])
def test_another_service_is_recognised(body: bytes) -> None:
    with scripted([status(200, body)]) as (url, _), Client(url) as client, pytest.raises(RemoteError, match="JSON"):
        client.health()


def test_nobody_listening_is_a_remote_error_soon() -> None:
    with scripted([]) as (url, _):
        pass
    began = time.monotonic()
    with Client(url, retries=1) as client, pytest.raises(RemoteError, match="no answer from"):
        client.health()
    assert time.monotonic() - began < 5


GONE = status(404, b'{"error": {"code": "not_found", "message": "there is no such thing", "details": []}}')


@pytest.mark.parametrize("failure", [hang_up, status(502), status(504)])
def test_a_mix_that_was_deleted_though_the_answer_was_lost_is_deleted(
    failure: Callable[[BaseHTTPRequestHandler], None],
) -> None:
    with scripted([failure, GONE]) as (url, seen), Client(url, retries=2) as client:
        client.delete_mix(ABSENT)
        assert len(seen) == 2


@pytest.mark.parametrize("refusal", [[GONE], [status(503, Retry_After="0"), GONE]])
def test_a_mix_that_was_never_there_is_told(refusal: Script) -> None:
    with (
        scripted(refusal) as (url, _),
        Client(url, retries=2) as client,
        pytest.raises(ServiceError, match="no such thing"),
    ):
        client.delete_mix(ABSENT)


@pytest.mark.parametrize("failure", [hang_up, status(502), status(504)])
def test_a_job_is_not_removed_because_the_answer_to_its_cancelling_was_lost(
    failure: Callable[[BaseHTTPRequestHandler], None],
) -> None:
    with scripted([failure, status(204, b"")]) as (url, seen), Client(url, retries=3) as client:
        with pytest.raises(RemoteError, match="look whether it was carried out"):
            client.delete_job(ABSENT)
        assert len(seen) == 1
        client.delete_job(ABSENT)


def test_every_attempt_at_a_mix_has_one_idempotency_key() -> None:
    keys: list[str | None] = []

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        keys.append(handler.headers["Idempotency-Key"])
        status(503, Retry_After="0")(handler)

    with (
        scripted([refuse, refuse]) as (url, _),
        Client(url, retries=1) as client,
        pytest.raises(ServiceError, match="503"),
    ):
        client.create_mix(task_rows(2), RECIPE)
    assert len(keys) == 2
    assert keys[0] == keys[1] is not None
