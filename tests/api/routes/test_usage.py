"""The usage log over HTTP: who did what with which ids, for admin keys alone, without a word of the users' rows."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from api.settings import Settings
from api.tenancy.keys import create_key, revoke_key
from curator.client import Client, ServiceError
from tests.api.serving import RECIPE, form, running, scored_store, task_rows


def test_what_keys_did_is_listed_for_the_operator_without_user_text(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    anna_key, anna = create_key(store, "anna", ["mix", "sql"])
    _, bert = create_key(store, "bert", ["mix"])
    _, admin = create_key(store, "ops", ["admin"])
    with (
        running(Settings(store=store.base)) as url,
        Client(url, anna) as client,
        Client(url, bert) as other,
        Client(url, admin) as operator,
    ):
        made = client.create_mix(task_rows(10, "secret words"), RECIPE)
        client.download(made["mix_id"], tmp_path / "mix.jsonl")
        client.sql("select 1 as one from corpora")
        job = client.create_mix(task_rows(12, "secret words"), RECIPE, background=True)
        queue = open_queue(store, None)
        worker = Worker(store, queue, {"mix": run_mix})
        worker.run(until_idle=True)
        worker.usage.close()
        queue.close()
        with pytest.raises(ServiceError):
            other.sql("select 1")
        with pytest.raises(ServiceError):
            other.manifest("not an id: secret words")
        httpx.get(f"{url}/v1/mixes", headers={"Authorization": "Bearer secret"})  # nobody's: not in the log

        events = list(operator.usage())
        by_action = {event["action"]: event for event in events if event["tenant"] == "anna"}
        created = by_action["POST /v1/mixes"]
        assert (created["status"], created["job_id"], created["n_rows_in"]) == (202, job["job_id"], 12)
        first = next(event for event in events if event["mix_id"] == made["mix_id"])
        assert (first["action"], first["status"], first["n_rows_in"]) == ("POST /v1/mixes", 201, 10)
        assert first["key_id"] == anna_key.key_id
        assert first["n_bytes_in"] > 500
        assert by_action["GET /v1/mixes/{mix_id}/data"]["mix_id"] == made["mix_id"]
        assert by_action["GET /v1/mixes/{mix_id}/data"]["n_bytes_out"] == (tmp_path / "mix.jsonl").stat().st_size
        assert by_action["POST /v1/sql"]["n_rows_out"] == 1
        ended = by_action["mix job done"]
        assert (ended["job_id"], ended["n_rows_in"], ended["key_id"]) == (job["job_id"], 12, None)
        assert len(ended["mix_id"]) == 32
        denied = {event["action"]: event["status"] for event in events if event["tenant"] == "bert"}
        assert denied == {"key created": None, "POST /v1/sql": 403, "GET /v1/mixes/{mix_id}": 404}
        assert "secret" not in "".join(path.read_text() for path in Path(store.base, "usage").rglob("*.jsonl"))

        assert [event["tenant"] for event in operator.usage(tenant="bert")] == ["bert"] * 3
        page = httpx.get(f"{url}/v1/usage?limit=2", headers={"Authorization": f"Bearer {admin}"}).json()
        assert (len(page["events"]), page["next_after"]) == (2, page["events"][1]["event_id"])
        assert list(operator.usage(until="2020-01-01T00:00:00")) == []
        assert list(operator.usage(since="2020-01-01", tenant="bert")) == list(operator.usage(tenant="bert"))
        for moment in ("0.5", "yesterday", "2020-02-30", "2020-01-01T25:00Z"):
            refused = httpx.get(f"{url}/v1/usage?until={moment}", headers={"Authorization": f"Bearer {admin}"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "bad_parameters")
        sums = {(row["tenant"], row["action"]): row for row in operator.usage_totals()}
        assert sums[("anna", "POST /v1/mixes")]["n_rows_in"] == 22
        assert sums[("bert", "POST /v1/sql")]["n_refused"] == 1

        for key in (anna, bert):
            answer = httpx.get(f"{url}/v1/usage", headers={"Authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")
        with pytest.raises(ServiceError, match="usage"):
            client.sql("select * from usage")

    revoke_key(store, anna_key.key_id)
    statement = "select action, count(*) as n from usage where tenant = 'anna' group by all order by 1"
    command = [sys.executable, "-m", "curator", "sql", statement, "--store", store.base, "--output-format", "csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "key created,1\nkey revoked,1\n" in done.stdout


def test_a_log_that_cannot_be_written_refuses_no_request(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    store.write_bytes("usage", b"a file where the folder should be")
    with running(Settings(store=store.base)) as url:
        assert httpx.post(f"{url}/v1/mixes", **form(task_rows(4))).status_code == 201
