"""The mode `train`: a worker runs trainer.sft on the mix of a job, whatever happens to the worker."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from api.__main__ import main
from api.app import create_app
from api.jobs.board import Board
from api.jobs.control import Control, StoppedError
from api.jobs.models import TrainedModel, read_models
from api.jobs.training import MARKER, _Run, checkpoint_id, failure, step_lines
from api.openai.records import Records
from api.settings import Settings
from curator.errors import BadInputError
from curator.store.store import Store
from tests.api.openai_api.steps import ended, error_of, events_of, uploaded, work
from tests.api.openai_api.test_client import differences
from tests.api.openai_api.test_forward import in_front_of
from tests.api.serving import RECIPE, json_lines, running, scored_store, task_rows
from tests.api.test_two_processes import copied
from tests.api.test_webhooks import wait_for
from tests.buckets import bucket_server, environment
from tests.models import tiny_model_folder

JOBS = "/fine_tuning/jobs"
USUAL: dict[str, Any] = {"epochs": 1, "lr": 0.01, "batch_size": 4, "grad_accum": 1}
OPTIONS: dict[str, Any] = {"device": "cpu", "lora_r": 4, "lora_alpha": 8, "warmup_steps": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_root(tmp_path_factory.mktemp("train"))


def train_root(path: Path) -> Path:
    """A folder with a scored store, a tiny model, a recipe and a file of models."""
    scored_store(path / "store")
    tiny_model_folder(path / "model")
    (path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    models = {
        "tiny": {"model": str(path / "model"), **USUAL, "options": OPTIONS},
        "whole": {"model": str(path / "model"), **USUAL, "options": {"device": "cpu", "full": True, "warmup_steps": 1}},
        "broken": {"model": str(path / "model"), **USUAL, "options": {**OPTIONS, "lora_targets": "nothing"}},
    }
    (path / "models.yaml").write_text(yaml.safe_dump(models))
    return path


def train_settings(root: Path, store: Path | str | None = None) -> Settings:
    return Settings(
        store=str(store or root / "store"),
        openai_mode="train",
        openai_recipe=str(root / "recipe.yaml"),
        openai_models=str(root / "models.yaml"),
    )


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    app = create_app(train_settings(root))
    app.state.openai.poll_s = 3_600.0  # jobs are taken further by those that ask; what a training leaves stays
    with running(app) as address:
        yield f"{address}/v1"


@pytest.fixture
def bucket_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A scored store in a bucket of its own."""
    from s3fs import S3FileSystem

    with bucket_server() as bucket:
        for name, value in environment(bucket).items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # one of another test's bucket would be taken
        yield copied(Path(scored_store(tmp_path / "local").base), Store("s3://ballast/train"))


@contextmanager
def worker(root: Path, store: Path | str | None = None, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """A worker that trains, in a process of its own; killed at the end."""
    command = [sys.executable, "-m", "api", "worker", "--store", str(store or root / "store")]
    process = subprocess.Popen(
        [*command, "--train", str(root / "models.yaml"), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def create(http: httpx.Client, text: str, **more: Any) -> str:
    body = {"model": "tiny", "training_file": uploaded(http, text), **more}
    answer = http.post(JOBS, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def until(http: httpx.Client, job_id: str, text: str) -> None:
    """Wait until an event of the job contains the text."""
    deadline_s = time.monotonic() + 400
    while not any(text in event["message"] for event in events_of(http, job_id)):
        assert time.monotonic() < deadline_s, events_of(http, job_id)
        time.sleep(0.1)


def trainings(root: Path) -> list[int]:
    """Process ids of trainings into this test's store that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "trainer.sft" in words and any(word.startswith(str(root)) for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_official_client_gets_a_model(root: Path, url: str) -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed (pip install 'openai>=3.57')")
    from openai.types import Model
    from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

    with worker(root), openai.OpenAI(base_url=url, api_key="none", _strict_response_validation=True) as client:
        training = client.files.create(file=("t.jsonl", json_lines(task_rows(20, "whole"))), purpose="fine-tune")
        held_out = client.files.create(file=("v.jsonl", json_lines(task_rows(12, "held"))), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            training_file=training.id,
            validation_file=held_out.id,
            model="tiny",
            suffix="kind/one",
            seed=7,
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 0.5}},
            },
        )
        deadline_s = time.monotonic() + 400
        while job.status not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline_s, job
            time.sleep(0.2)
            job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        model = f"ft:tiny:local:kind-one:{job.id.removeprefix('ftjob-')}"
        assert (job.fine_tuned_model, job.trained_tokens and job.trained_tokens > 100) == (model, True)
        assert job.hyperparameters.to_dict() == {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 0.5}
        events = list(client.fine_tuning.jobs.list_events(job.id))[::-1]
        steps = [event for event in events if event.type == "metrics" and "step" in event.data]
        assert [event.data["step"] for event in steps] == list(range(1, 17)), "22 rows, 6 a step, four times"
        assert re.fullmatch(r"Step 16/16: training loss=\d+\.\d\d", steps[-1].message)
        assert 0.0 < float(job.metadata["ballast_validation_loss"]) < 100.0
        assert re.fullmatch(r"Full validation loss=\d+\.\d\d", events[-3].message)
        assert [event.message for event in events[-2:]] == [
            "New fine-tuned model created",
            "The job has successfully completed",
        ]
        checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
        assert [item.step_number for item in checkpoints] == [16, 12, 8], "the ends of the last three epochs"
        raw = client.fine_tuning.jobs.checkpoints.with_raw_response.list(job.id).http_response.json()["data"]
        made = client.models.with_raw_response.retrieve(model).http_response.json()
        answers = [*((FineTuningJobCheckpoint, item) for item in raw), (Model, made)]
        assert not [item for kind, value in answers for item in differences(kind, value, kind.__name__)]
        assert checkpoints[0].fine_tuned_model_checkpoint == f"{model}:ckpt-step-16"
        assert [item.id for item in client.models.list()] == [model]
        assert client.models.retrieve(model).owned_by == "org-local"
        record = Records(Store(root / "store")).read("local", job.id)
        config = json.loads((root / "store/openai/local/jobs" / job.id / "run/config.json").read_text())["config"]
        chosen = {name: config[name] for name in ("seed", "epochs", "batch_size", "grad_accum", "lr", "mix_id")}
        assert chosen == {
            "seed": 7, "epochs": 4, "batch_size": 3, "grad_accum": 2, "lr": 0.005,
            "mix_id": job.metadata["ballast_mix_id"],
        }  # fmt: skip
        folder = root / "store" / job.metadata["ballast_model_folder"]
        assert folder.name == model, "an id is the name of its folder"
        loaded_by_the_evaluation(root, folder)
        loaded_by_the_evaluation(root, folder.with_name(f"{model}:ckpt-step-12"))
        assert not folder.with_name(f"{model}:ckpt-step-4").exists()
        assert client.models.delete(model).deleted is True
        assert list(client.models.list()) == []
        assert not list(folder.parent.glob(f"{model}*"))
        assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []
        assert record.status == "succeeded"


def loaded_by_the_evaluation(root: Path, adapter: Path) -> None:
    """`trainer.evaluate` measures the adapter, which changes the model's losses."""
    rows = root / "rows.jsonl"
    rows.write_bytes(json_lines(task_rows(3)))
    arguments = ["--model", str(root / "model"), "--adapter", str(adapter), "--data", str(rows), "--json"]
    command = [sys.executable, "-m", "trainer.evaluate.nll", *arguments, "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["shift"] != 0.0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", ["Step ", "Mixed"])
def test_a_worker_killed_at_any_moment_loses_no_job(root: Path, http: httpx.Client, moment: str) -> None:
    moments = random.Random(moment)
    job_id = create(http, f"killed {moment}", hyperparameters={"n_epochs": 12})
    for latest_s in (1.5, 8.0):  # the third death would be the last
        with worker(root) as process:
            until(http, job_id, moment)
            time.sleep(moments.uniform(0.0, latest_s))
            process.send_signal(signal.SIGKILL)
            process.wait()
        deadline_s = time.monotonic() + 10
        while trainings(root):
            assert time.monotonic() < deadline_s, "a training outlived its worker"
            time.sleep(0.05)
    with worker(root):
        job = ended(http, job_id, 180)
    assert job["status"] == "succeeded", job["error"]
    if moment == "Step ":
        assert "retried" in {event["data"].get("code") for event in events_of(http, job_id)}
    steps = [event["data"]["step"] for event in events_of(http, job_id) if event["type"] == "metrics"]
    assert steps == list(range(1, 73)), "each step is told once: 22 rows, 4 a step, 12 times"
    marker = Path(root / "store" / job["metadata"]["ballast_model_folder"] / "ballast.json").read_text()
    assert (json.loads(marker)["complete"], json.loads(marker)["steps"]) == (True, 72)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_worker_hands_the_training_back(root: Path, http: httpx.Client) -> None:
    job_id = create(http, "stopped", hyperparameters={"n_epochs": 50})
    with worker(root) as process:
        until(http, job_id, "Step 2/")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert not trainings(root)
    record = Records(Store(root / "store")).read("local", job_id)
    run = root / "store/openai/local/jobs" / job_id / "run"
    assert list(run.glob("checkpoints/checkpoint-*/complete.json")), "the next worker goes on from there"
    assert record.is_active
    answer = http.post(f"{JOBS}/{job_id}/cancel").json()
    assert answer["status"] == "cancelled"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_service_itself_may_be_the_upstream(root: Path, url: str, tmp_path: Path) -> None:
    with in_front_of(tmp_path, url) as place, worker(root):
        asked = {"suffix": "front", "seed": 5, "hyperparameters": {"n_epochs": 2, "batch_size": 12}}
        job_id = place.create("in front", model="tiny", **asked)
        record = place.steps(job_id, within_s=240)
        assert record.status == "succeeded", record.error
        job = place.http.get(f"{JOBS}/{job_id}").json()
        behind_id = job["metadata"]["ballast_upstream_job"]
        model = f"ft:tiny:local:front:{behind_id.removeprefix('ftjob-')}"
        assert (job["fine_tuned_model"], job["trained_tokens"] > 100) == (model, True)
        assert [item["id"] for item in place.http.get("/models").json()["data"]] == [model]
        found = place.http.get(f"{JOBS}/{job_id}/checkpoints").json()["data"]
        assert [item["step_number"] for item in found] == [4, 2], "24 rows: 22 were sent, 2 more were mixed in there"
        steps = [event["data"]["step"] for event in events_of(place.http, job_id) if event["type"] == "metrics"]
        assert steps == [1, 2, 3, 4]
        behind = httpx.get(f"{url}{JOBS}/{behind_id}").json()
        assert (behind["seed"], behind["metadata"]["gateway_job"]) == (5, job_id)
        assert place.http.delete(f"/models/{model}").json()["deleted"] is True
        assert httpx.get(f"{url}/models/{model}").status_code == 404, "it was deleted there"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_weight_may_be_trained_and_a_model_outlives_its_training_job(root: Path, http: httpx.Client) -> None:
    held_out = uploaded(http, "held", 12)
    with worker(root):
        job_id = create(http, "full", model="whole", validation_file=held_out)
        until(http, job_id, "Mixed")  # from then on nobody looks at the job
        training = Records(Store(root / "store")).read("local", job_id).training
        assert training is not None
        path, deadline_s = f"/jobs/{training.work_id}", time.monotonic() + 400
        while http.get(path).json()["state"] in ("queued", "running"):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert http.delete(path).status_code == 204
        job = ended(http, job_id)
    steps = [event["data"]["step"] for event in events_of(http, job_id) if "step" in event["data"]]
    assert steps == list(range(1, 7))
    assert job["status"] == "succeeded", job["error"]
    folder = root / "store" / job["metadata"]["ballast_model_folder"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert float(job["metadata"]["ballast_validation_loss"]) > 0.0
    (checkpoint,) = http.get(f"{JOBS}/{job['id']}/checkpoints").json()["data"]
    names = {path.name for path in folder.with_name(checkpoint["fine_tuned_model_checkpoint"]).iterdir()}
    assert {"config.json", "model.safetensors"} <= names


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cancel_ends_the_training(root: Path, http: httpx.Client) -> None:
    job_id = create(http, "cancelled", hyperparameters={"n_epochs": 50})
    with worker(root):
        until(http, job_id, "Step 1/")
        job = http.post(f"{JOBS}/{job_id}/cancel").json()
        assert (job["status"], job["fine_tuned_model"]) == ("cancelled", None)
        assert not trainings(root)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_fails_says_why_without_the_workers_paths(root: Path, http: httpx.Client) -> None:
    job_id = create(http, "failing", model="broken")
    with worker(root):
        job = ended(http, job_id, 180)
    assert (job["status"], job["error"]["code"]) == ("failed", "training_failed")
    assert "nothing" in job["error"]["message"]
    assert str(root) not in json.dumps([job, events_of(http, job_id)])


def test_what_a_training_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with_child.py").write_text(
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(tmp_path / 'child.new')!r}).write_text(str(child.pid))\n"
        f"pathlib.Path({str(tmp_path / 'child.new')!r}).rename({str(tmp_path / 'child')!r})\n"
        "try:\n    time.sleep(600)\n"
        f"except KeyboardInterrupt:\n    pathlib.Path({str(tmp_path / 'interrupted')!r}).touch()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    board = Board(Store(tmp_path / "store"))
    control = Control(board, board.create("local", "train", {}), (tmp_path / "child").exists)
    run = _Run(board.store, tmp_path / "run", {}, control)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a worker that a shell started with `&`
    try:
        with pytest.raises(StoppedError):
            run.finished("with_child", {}, tmp_path, "model")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "interrupted").exists()
    stat, deadline_s = Path("/proc", (tmp_path / "child").read_text(), "stat"), time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline_s, "it outlived the training"
        time.sleep(0.05)


def test_a_stop_is_a_stop_where_the_store_takes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    board = Board(Store(tmp_path / "store"))
    control = Control(board, board.create("local", "train", {}), lambda: True)
    request = {"run": "run", "models": "taken/models", "model_id": "m"}
    run = _Run(board.store, tmp_path / "run", request, control)
    checkpoint = run.folder / "checkpoints/checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / MARKER).write_text("{}")
    board.store.write_bytes("taken", b"a file where a folder has to be")
    with pytest.raises(StoppedError):
        run.finished("sleeper", {}, tmp_path, "model")
    assert "the newest checkpoint of a training is not in the store: " in capfd.readouterr().err


def test_steps_are_read_from_the_end_of_a_long_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("run/metrics.jsonl", b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    for last_bytes, steps in ((None, [1, 2, 3]), (99, [1, 2, 3]), (16, [3]), (17, [3]), (28, [2, 3]), (4, [])):
        assert [line["step"] for line in step_lines(store, "run", last_bytes)] == steps


def test_the_reason_of_a_failure_names_no_path_of_the_worker(tmp_path: Path) -> None:
    log, store, scratch = tmp_path / "stderr", f"{tmp_path}/store", f"{tmp_path}/ballast-job-1"
    log.write_text(
        f"error: earlier\ntrain: error: {store}/run/x is not {store}/mixes or {scratch}/rows.jsonl\n1 more\n"
    )
    hidden = {store: "(store)", f"{store}/run": "(run)", scratch: "(scratch)"}
    assert failure(2, {}, log, hidden).message == "(run)/x is not (store)/mixes or (scratch)/rows.jsonl"


def test_a_training_waits_for_its_place_and_is_made_once(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    app = create_app(train_settings(root, tmp_path).model_copy(update={"tenant_jobs": 1}))
    app.state.openai.poll_s = 3_600.0
    with running(app) as address, httpx.Client(base_url=f"{address}/v1", timeout=60) as http:
        job_id = create(http, "first")
        work(tmp_path)  # its mixing has ended, and its place is free
        other_id = create(http, "second")
        job = http.get(f"{JOBS}/{job_id}").json()
        assert (job["status"], job["metadata"]["ballast_safe_rows"]) == ("running", "2")
        assert Board(store).active("train") == [], "the place is the second job's"
        assert http.post(f"{JOBS}/{other_id}/cancel").json()["status"] == "cancelled"
        for _ in range(3):
            assert http.get(f"{JOBS}/{job_id}").json()["status"] == "running"
        assert len(Board(store).active("train")) == 1
        assert http.post(f"{JOBS}/{job_id}/cancel").json()["status"] == "cancelled"
        assert Board(store).active() == []


def test_nothing_is_trained_for_a_tenant_whose_share_of_the_store_is_full(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = scored_store(tmp_path)
    app = create_app(train_settings(root, tmp_path).model_copy(update={"tenant_stored_bytes": 1_000_000}))
    app.state.openai.poll_s = 3_600.0
    with running(app) as address, httpx.Client(base_url=f"{address}/v1", timeout=60) as http:
        job_id = create(http, "full share")
        store.write_bytes("openai/local/models/earlier/weights", bytes(1_000_000))
        work(tmp_path)
        monkeypatch.setattr("api.tenancy.quotas.MEASURED_S", 0.0)  # as after ten seconds
        job = ended(http, job_id)
        assert (job["status"], job["error"]["code"]) == ("failed", "tenant_storage_full")
        assert "/v1/models" in job["error"]["message"]
        assert Board(store).active() == []


def test_what_cannot_be_trained_is_refused_before_anything_is_mixed(http: httpx.Client) -> None:
    file_id = uploaded(http, "refused")
    body = {"model": "gpt-4o", "training_file": file_id}
    error = error_of(http.post(JOBS, json=body), 400)
    assert (error["code"], error["param"]) == ("model_not_available", "model")
    assert "broken, tiny, whole" in error["message"]
    body = {"model": "tiny", "training_file": file_id, "hyperparameters": {"learning_rate_multiplier": 101.0}}
    error = error_of(http.post(JOBS, json=body), 400)
    assert error["param"] == "hyperparameters.learning_rate_multiplier"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_left_of_a_training_goes(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    app = create_app(train_settings(root, tmp_path))
    app.state.openai.poll_s = 0.2  # nobody asks: the service takes the job further by itself
    with running(app) as address, httpx.Client(base_url=f"{address}/v1", timeout=60) as http, worker(root, tmp_path):
        job_id = create(http, "left", hyperparameters={"n_epochs": 2})
        records, deadline_s = Records(store), time.monotonic() + 120
        while records.read("local", job_id).is_active or store.exists(records.run_path("local", job_id)):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        job = http.get(f"{JOBS}/{job_id}").json()
        assert job["status"] == "succeeded"
        records.sweep(ttl_s=-1, grace_s=3600)
        assert http.get(f"{JOBS}/{job_id}").status_code == 200, "it stays as long as its model"
        assert http.delete(f"/models/{job['fine_tuned_model']}").status_code == 200
        records.sweep(ttl_s=-1, grace_s=3600)
        assert http.get(f"{JOBS}/{job_id}").status_code == 404


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_store_in_a_bucket(root: Path, bucket_store: Store, tmp_path: Path) -> None:
    place, queue, store = "s3://ballast/train", str(tmp_path / "queue.sqlite"), bucket_store
    settings = train_settings(root, place).model_copy(update={"job_queue": queue})
    with (
        running(settings) as address,
        httpx.Client(base_url=f"{address}/v1", timeout=60) as http,
        worker(root, place, "--job-queue", queue),
    ):
        held_out = uploaded(http, "held", 12)
        job_id = create(http, "bucket", hyperparameters={"n_epochs": 2}, validation_file=held_out)
        models, name = "openai/local/models", f"ft:tiny:local::{job_id.removeprefix('ftjob-')}"
        for step in (3, 6):  # of an attempt whose worker died, without its state
            for file in ("left", MARKER):
                store.write_bytes(f"{models}/{checkpoint_id(name, step)}/{file}", b"{}")
        job = ended(http, job_id, 400)
        assert job["status"] == "succeeded", job["error"]
        steps = [event["data"]["step"] for event in events_of(http, job_id) if "step" in event["data"]]
        assert (steps, "ballast_validation_loss" in job["metadata"]) == (list(range(1, 13)), True)
        found = http.get(f"{JOBS}/{job_id}/checkpoints").json()["data"]
        assert [item["step_number"] for item in found] == [12, 6]
        assert store.list(models) == [name, checkpoint_id(name, 12), checkpoint_id(name, 6)]
        assert not {"left", "optimizer.pt"} & set(store.list(f"{models}/{checkpoint_id(name, 6)}"))
        assert "adapter_model.safetensors" in store.list(job["metadata"]["ballast_model_folder"])
        assert http.delete(f"/models/{job['fine_tuned_model']}").status_code == 200
        assert store.list("openai/local/models") == []


def test_a_run_goes_through_a_bucket_with_the_state_of_its_newest_checkpoint(tmp_path: Path) -> None:
    board = Board(Store(f"memory://{tmp_path.name}"))
    control = Control(board, board.create("local", "train", {}))
    request = {"run": "openai/local/jobs/one/run", "models": "openai/local/models", "model_id": "m"}
    first = _Run(board.store, tmp_path / "first", request, control)
    first.begin()
    for step in (3, 6):
        checkpoint = first.folder / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth"):
            (checkpoint / name).write_text(f"{name} {step}")
        (first.folder / "config.json").write_text('{"resolved": {"steps": 9}}')
        (first.folder / "metrics.jsonl").write_text("{}\n" * step)
        first.look()
        assert board.store.list("openai/local/models") == ([checkpoint_id("m", 3)] if step == 6 else [])
        (checkpoint / MARKER).write_text("{}")  # comes last
        first.look()
    assert board.store.list("openai/local/models") == [checkpoint_id("m", 3), checkpoint_id("m", 6)]
    served = board.store.list(f"openai/local/models/{checkpoint_id('m', 6)}")
    assert served == ["adapter_model.safetensors", MARKER]
    assert steps_to_go_on_from(board.store, request["run"]) == [6]

    torn = f"{request['run']}/checkpoints/checkpoint-3/optimizer.pt"
    board.store.write_bytes(torn, b"torn")  # of an earlier attempt, without a marker
    first.brought = set()
    first.look()
    assert not board.store.exists(torn)
    (first.folder / "checkpoints/checkpoint-6" / MARKER).unlink()  # of a later one that a kill left half written
    half = first.folder / "checkpoints/checkpoint-9"
    half.mkdir()
    (half / "optimizer.pt").write_text("torn")
    board.store.write_bytes(f"{request['run']}/checkpoints/checkpoint-9/optimizer.pt", b"torn")
    second = _Run(board.store, tmp_path / "second", request, control)
    second.begin()
    found = {str(path.relative_to(second.folder)): path.read_text() for path in second.folder.rglob("*.*")}
    place = "checkpoints/checkpoint-6"
    assert found == {
        "config.json": '{"resolved": {"steps": 9}}',
        "metrics.jsonl": "{}\n" * 6,
        f"{place}/{MARKER}": "{}",
        f"{place}/adapter_model.safetensors": "adapter_model.safetensors 6",
        f"{place}/optimizer.pt": "optimizer.pt 6",
        f"{place}/rng_state.pth": "rng_state.pth 6",
    }
    second.look()
    assert board.store.list("openai/local/models") == [checkpoint_id("m", 6)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_another_worker_goes_on_from_the_newest_checkpoint_in_the_bucket(
    root: Path, bucket_store: Store, tmp_path: Path
) -> None:
    place, queue, store = "s3://ballast/train", str(tmp_path / "queue.sqlite"), bucket_store
    app = create_app(train_settings(root, place).model_copy(update={"job_queue": queue}))
    app.state.openai.poll_s = 3_600.0  # what the training leaves stays
    with running(app) as address, httpx.Client(base_url=f"{address}/v1", timeout=60) as http:
        job_id = create(http, "moved", hyperparameters={"n_epochs": 12})
        run = Records(store).run_path("local", job_id)
        step = 0
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with worker(root, place, "--job-queue", queue) as process:
                training = stopped_training(root, http, job_id, step)
                wait_for(partial(has_gone_on, store, run, step), 400)
                process.send_signal(sent)
                if sent is signal.SIGTERM:
                    wait_for(partial(is_told_to_stop, training), 120)
                    os.kill(training, signal.SIGCONT)
                process.wait(120)
            assert has_gone_on(store, run, step)
            step = max(steps_to_go_on_from(store, run))
            assert "optimizer.pt" in store.list(f"{run}/checkpoints/checkpoint-{step}")
            record = Records(store).read("local", job_id).training
            assert record is not None
            store.delete(f"jobs/local/{record.work_id}/.lock")  # as after two minutes, when it has run out
        before = store.read_bytes(f"{run}/metrics.jsonl").splitlines()[:step]
        with worker(root, place, "--job-queue", queue):
            job = ended(http, job_id, 240)
        assert job["status"] == "succeeded", job["error"]
        steps = [event["data"]["step"] for event in events_of(http, job_id) if event["type"] == "metrics"]
        assert steps == list(range(1, 73)), "each step is told once: 22 rows, 4 a step, 12 times"
        after = store.read_bytes(f"{run}/metrics.jsonl").splitlines()
        assert (len(after), after[:step]) == (72, before), "their times too: those steps were not trained again"
        marker = store.read_json(f"{job['metadata']['ballast_model_folder']}/ballast.json")
        assert (marker["complete"], marker["steps"]) == (True, 72)
        kept = [item["step_number"] for item in http.get(f"{JOBS}/{job_id}/checkpoints").json()["data"]]
        assert kept == [72, 66, 60]
        assert steps_to_go_on_from(store, run) == [72]


def stopped_training(root: Path, http: httpx.Client, job_id: str, after: int) -> int:
    """The process that trains, stopped when it has a whole checkpoint of a step later than `after`.

    So short a training may else be over before its worker has brought a checkpoint to the bucket."""
    deadline_s = time.monotonic() + 400
    while not (found := trainings(root)):
        assert http.get(f"{JOBS}/{job_id}").json()["status"] in ("queued", "running")  # who asks takes it further
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    (training,) = found
    words = Path(f"/proc/{training}/cmdline").read_bytes().decode().split("\0")
    folder = Path(words[words.index("--out") + 1])
    while not any(int(marker.parent.name.rpartition("-")[2]) > after for marker in markers_of(folder)):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    os.kill(training, signal.SIGSTOP)
    return training


def markers_of(run: Path) -> list[Path]:
    return list(run.glob(f"checkpoints/checkpoint-*/{MARKER}"))


def is_told_to_stop(process: int) -> bool:
    """Whether SIGINT waits for a stopped process."""
    status = Path(f"/proc/{process}/status").read_text()
    pending = int(next(line for line in status.splitlines() if line.startswith("ShdPnd")).split()[1], 16)
    return bool(pending >> (signal.SIGINT - 1) & 1)


def has_gone_on(store: Store, run: str, step: int) -> bool:
    """Whether the store has a whole checkpoint of a later step."""
    return max(steps_to_go_on_from(store, run), default=0) > step


def steps_to_go_on_from(store: Store, run: str) -> list[int]:
    """The steps of a run's whole checkpoints in the store."""
    names = store.list(f"{run}/checkpoints")
    return [int(name.rpartition("-")[2]) for name in names if MARKER in store.list(f"{run}/checkpoints/{name}")]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (3, 16, 1.0)),
        ({"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}, (3, 16, 1.0)),
        ({"n_epochs": 2, "batch_size": 7, "learning_rate_multiplier": 2.0}, (2, 7, 2.0)),
    ],
)
def test_auto_is_what_the_operator_says(asked: dict[str, Any], expected: tuple[float, ...]) -> None:
    model = TrainedModel(model="m", epochs=3, lr=0.1, batch_size=4, grad_accum=4)
    assert tuple(model.chosen(asked).values()) == expected


@pytest.mark.parametrize(("rows", "passes"), [(1, (1, 1)), (6, (3, 2)), (7, (1, 7)), (16, (4, 4)), (3, (3, 1))])
def test_the_rows_of_a_step_are_cut_into_equal_passes(rows: int, passes: tuple[int, int]) -> None:
    model = TrainedModel(model="m", epochs=1, lr=0.1, batch_size=4, grad_accum=4)
    settings = model.settings(model.chosen({"batch_size": rows}), 22)
    assert (settings["batch_size"], settings["grad_accum"]) == passes
    assert settings["save_steps"] == -(-22 // rows), "the steps of an epoch"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "models"),
        ({"a b": {"model": "m", **USUAL}}, "a b"),
        ({"a": {"model": "m"}}, "epochs"),
        ({"a": {"model": "m", **USUAL, "options": {"seed": 3}}}, "option seed of model a is set by the service"),
    ],
)
def test_a_bad_models_file_is_refused(tmp_path: Path, document: dict[str, Any], message: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(BadInputError, match=message):
        read_models(str(path))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [("absent", {}, "absent does not exist"), ("model", {"lrr": 3}, "unknown option --lrr of model a")],
)
def test_a_worker_refuses_models_that_it_cannot_train(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump({"a": {"model": str(root / model), **USUAL, "options": options}}))
    assert main(["worker", "--store", str(root / "store"), "--train", str(path), "--until-idle"]) == 2
    assert message in capsys.readouterr().err


def test_a_worker_whose_trainer_does_not_start_says_so(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/__init__.py").touch()
    (tmp_path / "trainer/sft.py").write_text("raise ImportError('no such part')")
    monkeypatch.chdir(tmp_path)
    arguments = ["worker", "--store", str(root / "store"), "--train", str(root / "models.yaml"), "--until-idle"]
    assert main(arguments) == 2
    assert "fails: ImportError: no such part" in capsys.readouterr().err
