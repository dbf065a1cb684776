"""The official client, unmodified and with strict validation of responses, sync and async."""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from api.app import create_app
from api.settings import Settings
from api.tenancy.keys import create_key
from tests.api.openai_api.steps import work
from tests.api.openai_api.upstreams import KEY, upstream
from tests.api.serving import RECIPE, json_lines, running, scored_store, task_rows

openai = pytest.importorskip("openai", reason="the official client is not installed (pip install 'openai>=3.57')")

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "openai.md").read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client")
    store = scored_store(path / "store")
    (path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (path / "tokens").write_text(" ".join(create_key(store, name, ["mix"])[1] for name in ("anna", "bert")))
    return path


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with running(Settings(store=str(root / "store"), openai_recipe=str(root / "recipe.yaml"))) as address:
        yield address


def client_of(kind: Any, url: str, root: Path, who: int = 0) -> Any:
    token = (root / "tokens").read_text().split()[who]
    return kind(base_url=f"{url}/v1", api_key=token, _strict_response_validation=True, max_retries=1)


@pytest.fixture
def client(url: str, root: Path) -> Iterator[Any]:
    with client_of(openai.OpenAI, url, root) as found:
        yield found


def train_file(text: str, n_rows: int = 20) -> tuple[str, bytes]:
    return "train.jsonl", json_lines(task_rows(n_rows, text))


def test_the_whole_flow(client: Any, root: Path) -> None:
    training = client.files.create(
        file=train_file("flow"), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert client.files.wait_for_processing(training.id).status == "processed"
    held_out = client.files.create(file=("valid.jsonl", train_file("held out")[1]), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        training_file=training.id,
        validation_file=held_out.id,
        model="my-model",
        suffix="kind",
        seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "batch_size": 4}}},
        metadata={"team": "red"},
        extra_body={"ballast": {"recipe": {"interleave_ratio": 0.2}}},
    )
    assert (job.status, job.seed, job.hyperparameters.batch_size) == ("queued", 3, 4)
    work(root / "store")
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.metadata["ballast_safe_rows"]) == ("succeeded", "4")
    events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=2)]
    assert events[-1] == f"Created fine-tuning job: {job.id}", "the client pages by itself"
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "red"})] == [job.id]
    assert len(client.files.content(job.result_files[0]).content.splitlines()) == 24
    assert list(client.models.list()) == [], "nothing is trained"
    assert client.files.delete(training.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(training.id)


def test_the_async_client(url: str, root: Path) -> None:
    async def flow() -> None:
        async with client_of(openai.AsyncOpenAI, url, root) as client:
            training = await client.files.create(file=train_file("async"), purpose="fine-tune")
            job = await client.fine_tuning.jobs.create(training_file=training.id, model="m")
            cancelled = await client.fine_tuning.jobs.cancel(job.id)
            assert cancelled.status == "cancelled"
            pages = [event async for event in client.fine_tuning.jobs.list_events(job.id, limit=1)]
            assert len(pages) >= 4
            names = [file.id async for file in client.files.list(purpose="fine-tune", limit=1)]
            assert training.id in names

    asyncio.run(flow())


def test_errors_are_those_that_scripts_catch(client: Any, url: str, root: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="Expected file to have JSONL format") as refused:
        client.files.create(file=("bad.jsonl", b"[1]\n" * 12), purpose="fine-tune")
    assert (refused.value.code, refused.value.param, refused.value.type) == (
        "invalid_training_file",
        "file",
        "invalid_request_error",
    )
    assert refused.value.request_id
    made = client.files.create(file=train_file("errors"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as dpo:
        client.fine_tuning.jobs.create(training_file=made.id, model="m", method={"type": "dpo", "dpo": {}})
    assert dpo.value.code == "unsupported_method"
    with client_of(openai.OpenAI, url, root, who=1) as other, pytest.raises(openai.NotFoundError, match=made.id):
        other.files.retrieve(made.id)
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as wrong,
        pytest.raises(openai.AuthenticationError) as unknown,
    ):
        wrong.files.list()
    assert unknown.value.code == "invalid_api_key"
    job = client.fine_tuning.jobs.create(training_file=made.id, model="m")
    with pytest.raises(openai.BadRequestError, match="cannot be paused"):
        client.fine_tuning.jobs.pause(job.id)
    work(root / "store")
    with pytest.raises(openai.BadRequestError, match="it cannot be cancelled"):
        client.fine_tuning.jobs.cancel(job.id)


def test_the_quota_is_a_rate_limit_error(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    settings = Settings(store=store.base, openai_recipe=str(root / "recipe.yaml"), tenant_rows_per_hour=30)
    with (
        running(settings) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        client.files.create(file=train_file("one"), purpose="fine-tune")
        with pytest.raises(openai.RateLimitError):
            client.files.create(file=train_file("two"), purpose="fine-tune")


def test_a_lost_answer_makes_no_second_file_or_job(url: str, root: Path) -> None:
    import httpx2

    class Losing(httpx2.HTTPTransport):
        """Loses the answer to the first try of every POST, after the service has done it."""

        def __init__(self) -> None:
            super().__init__()
            self.n_lost = 0

        def handle_request(self, request: Any) -> Any:
            answer = super().handle_request(request)
            if request.method == "POST" and request.headers["x-stainless-retry-count"] == "0":
                answer.read()
                self.n_lost += 1
                raise httpx2.ReadError("the connection broke")
            return answer

    losing = Losing()
    token = (root / "tokens").read_text().split()[1]
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key=token, max_retries=2, http_client=openai.DefaultHttpxClient(transport=losing)
    ) as client:
        made = client.files.create(file=train_file("lost"), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(training_file=made.id, model="m")
        assert losing.n_lost == 2
        assert [found.id for found in client.files.list(purpose="fine-tune")] == [made.id]
        assert [found.id for found in client.fine_tuning.jobs.list()] == [job.id]
    work(root / "store")


def test_the_whole_flow_in_front_of_an_upstream(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    (tmp_path / "key").write_text(KEY)
    with upstream() as found:
        settings = Settings(
            store=store.base,
            openai_mode="forward",
            openai_recipe=str(root / "recipe.yaml"),
            openai_upstream=found.url,
            openai_key_file=str(tmp_path / "key"),
        )
        app = create_app(settings)
        app.state.openai.poll_s = 0.1
        app.state.openai.forwarder = replace(app.state.openai.forwarder, follow_s=0.0)
        with (
            running(app) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", _strict_response_validation=True) as client,
        ):
            training = client.files.create(file=train_file("forward"), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(training_file=training.id, model="base", suffix="kind")
            work(store.base)
            deadline_s = time.monotonic() + 60
            while job.status not in ("succeeded", "failed"):
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
                job = client.fine_tuning.jobs.retrieve(job.id)
            assert (job.status, job.fine_tuned_model) == ("succeeded", "ft:base:ftjob-up0")
            assert [model.id for model in client.models.list()] == [job.fine_tuned_model]
            assert client.models.retrieve(job.fine_tuned_model).object == "model"
            (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
            assert checkpoint.step_number == 1
            assert client.models.delete(job.fine_tuned_model).deleted is True
            assert list(client.models.list()) == []


def test_the_script_of_the_documentation_runs(url: str, root: Path, tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    (tmp_path / "train.jsonl").write_bytes(train_file("script")[1])
    token = (root / "tokens").read_text().split()[0]
    environment = {**os.environ, "BALLAST_URL": url, "BALLAST_TOKEN": token}
    done = threading.Event()

    def keep_working() -> None:
        while not done.wait(0.2):
            work(root / "store")

    worker = threading.Thread(target=keep_working)
    worker.start()
    try:
        run = subprocess.run(
            [sys.executable, "-W", "ignore::ResourceWarning", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        done.set()
        worker.join()
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "succeeded 0.1"
    assert len((tmp_path / "mix.jsonl").read_bytes().splitlines()) == 22


def differences(kind: Any, value: Any, where: str) -> Iterator[tuple[str, str]]:
    """(kind of difference, place) of a value and the client's type for it: missing, wrong or unknown."""
    fields = {info.alias or name: info for name, info in kind.model_fields.items()}
    for name in sorted(value.keys() - fields.keys()):
        yield "unknown", f"{where}.{name}"
    for name, info in fields.items():
        if name not in value:
            if info.is_required():
                yield "missing", f"{where}.{name}"
        elif not _fits(info.annotation, value[name]):
            yield "wrong", f"{where}.{name}"


def _fits(kind: Any, value: Any) -> bool:
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(kind).validate_python(value, strict=get_origin(kind) is not Literal)
    except ValidationError:
        return False
    return True


def test_the_differences_to_the_clients_types_are_those_of_the_documentation(client: Any, root: Path) -> None:
    from openai.types import FileDeleted, FileObject, Upload, file_purpose
    from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent, job_create_params
    from openai.types.uploads import UploadPart

    files, jobs = client.files.with_raw_response, client.fine_tuning.jobs.with_raw_response
    made = files.create(file=train_file("types"), purpose="fine-tune").http_response.json()
    body = {"training_file": made["id"], "model": "m", "metadata": {"a": "b"}}
    job = jobs.create(**body).http_response.json()
    work(root / "store")
    done = jobs.retrieve(job["id"]).http_response.json()
    events = jobs.list_events(job["id"]).http_response.json()["data"]
    result = files.retrieve(done["result_files"][0]).http_response.json()
    deleted = files.delete(made["id"]).http_response.json()
    content = train_file("in parts")[1]
    uploads = client.uploads.with_raw_response
    pending = uploads.create(bytes=len(content), filename="t", mime_type="x", purpose="fine-tune").http_response.json()
    part = client.uploads.parts.with_raw_response.create(pending["id"], data=content).http_response.json()
    whole = uploads.complete(pending["id"], part_ids=[part["id"]]).http_response.json()
    answers: list[tuple[Any, Any]] = [(Upload, pending), (UploadPart, part), (Upload, whole)]
    answers += [(FileObject, made), (FileObject, result), (FileDeleted, deleted), (FineTuningJob, job)]
    answers += [(FineTuningJob, done), *((FineTuningJobEvent, event) for event in events)]
    found = {item for kind, value in answers for item in differences(kind, value, kind.__name__)}
    unfit = [item for item in found if item[0] != "unknown"]
    extra = [item for item in found if item[0] == "unknown"]
    assert f"{len(unfit)} fields of its types are missing" in " ".join(DOCS.split()), unfit
    assert f"{len(extra)} fields are there that" in " ".join(DOCS.split()), extra
    purposes = len(get_args(file_purpose.FilePurpose)) - 1
    methods = len(get_args(get_type_hints(job_create_params.Method)["type"])) - 1
    n_refused = purposes + methods + 2
    assert f"{n_refused} are refused: {purposes} purposes of files, {methods} methods, integrations" in " ".join(
        DOCS.split()
    )
