"""What the official client is promised holds in every mode: sync and async, cancel, errors, lost answers."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from api.settings import Settings
from api.tenancy.keys import create_key
from tests.api.openai_api.upstreams import KEY, upstream
from tests.api.serving import RECIPE, json_lines, running, scored_store, task_rows

openai = pytest.importorskip("openai", reason="the official client is not installed (pip install 'openai>=3.57')")


@pytest.fixture(scope="module", params=["mix", "train", "forward"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """The URL of a service in a mode, and the tokens of two tenants; nobody works on its jobs."""
    folder = tmp_path_factory.mktemp(request.param)
    store = scored_store(folder / "store")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "key").write_text(KEY)
    model = {"model": "models/base", "epochs": 1, "lr": 0.01, "batch_size": 4, "grad_accum": 1}
    (folder / "models.yaml").write_text(yaml.safe_dump({"base": model}))
    tokens = [create_key(store, name, ["mix"])[1] for name in ("anna", "bert")]
    with upstream() as found:
        own: dict[str, dict[str, str]] = {
            "mix": {},
            "train": {"openai_models": str(folder / "models.yaml")},
            "forward": {"openai_upstream": found.url, "openai_key_file": str(folder / "key")},
        }
        recipe = str(folder / "recipe.yaml")
        settings = Settings(
            store=store.base,
            openai_mode=request.param,
            openai_recipe=recipe,
            tenant_rows_per_hour=150,
            **own[request.param],
        )
        with running(settings) as url:
            yield f"{url}/v1", tokens
        assert found.jobs == {}, "what was cancelled before it was mixed is never sent"


def rows(text: str) -> tuple[str, bytes]:
    return "train.jsonl", json_lines(task_rows(20, text))


def test_the_sync_client(place: tuple[str, list[str]]) -> None:
    url, tokens = place
    strict: dict[str, Any] = {"base_url": url, "max_retries": 0, "_strict_response_validation": True}
    with openai.OpenAI(api_key=tokens[0], **strict) as client, openai.OpenAI(api_key=tokens[1], **strict) as other:
        training = client.files.create(file=rows("sync"), purpose="fine-tune")
        assert client.files.wait_for_processing(training.id).status == "processed"
        jobs = [
            client.fine_tuning.jobs.create(training_file=training.id, model="base", seed=n, metadata={"n": str(n)})
            for n in range(3)
        ]
        assert [job.id for job in client.fine_tuning.jobs.list(limit=1)] == [job.id for job in jobs[::-1]]
        assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "1"})] == [jobs[1].id]
        for job in jobs:
            assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        assert client.fine_tuning.jobs.retrieve(jobs[0].id).status == "cancelled"
        assert list(client.models.list()) == []
        for ask in (other.fine_tuning.jobs.retrieve, other.fine_tuning.jobs.cancel, other.fine_tuning.jobs.list_events):
            with pytest.raises(openai.NotFoundError) as foreign:
                ask(jobs[0].id)
            assert foreign.value.code == "fine_tune_not_found"
        assert list(other.fine_tuning.jobs.list()) == []
        with pytest.raises(openai.BadRequestError) as paused:
            client.fine_tuning.jobs.pause(jobs[0].id)
        assert paused.value.code == "pause_not_supported"
        with pytest.raises(openai.BadRequestError) as dpo:
            client.fine_tuning.jobs.create(training_file=training.id, model="base", method={"type": "dpo", "dpo": {}})
        assert (dpo.value.code, dpo.value.response.headers["x-should-retry"]) == ("unsupported_method", "false")
        with pytest.raises(openai.AuthenticationError) as unknown:
            client.with_options(api_key="wrong").fine_tuning.jobs.list()
        assert unknown.value.code == "invalid_api_key"


def test_the_async_client_whose_connections_drop(place: tuple[str, list[str]]) -> None:
    import httpx2

    url, tokens = place

    class Losing(httpx2.AsyncHTTPTransport):
        """Loses the answer to the first try of every POST, after the service has done it."""

        async def handle_async_request(self, request: Any) -> Any:
            answer = await super().handle_async_request(request)
            if request.method == "POST" and request.headers["x-stainless-retry-count"] == "0":
                await answer.aread()
                raise httpx2.ReadError("the connection broke")
            return answer

    async def flow() -> None:
        http = openai.DefaultAsyncHttpxClient(transport=Losing())
        async with openai.AsyncOpenAI(
            base_url=url, api_key=tokens[1], max_retries=2, _strict_response_validation=True, http_client=http
        ) as client:
            training = await client.files.create(file=rows("async"), purpose="fine-tune")
            assert (await client.files.wait_for_processing(training.id)).status == "processed"
            job = await client.fine_tuning.jobs.create(training_file=training.id, model="base")
            assert [found.id async for found in client.files.list()] == [training.id]
            assert [found.id async for found in client.fine_tuning.jobs.list()] == [job.id]
            assert (await client.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
            events = [event.message async for event in client.fine_tuning.jobs.list_events(job.id, limit=1)]
            assert events[-1] == f"Created fine-tuning job: {job.id}"

    asyncio.run(flow())


def test_the_quota(place: tuple[str, list[str]]) -> None:
    url, tokens = place
    with openai.OpenAI(base_url=url, api_key=tokens[0], max_retries=0) as client:

        def send() -> None:
            for n in range(8):  # 20 rows each, 150 an hour
                client.files.create(file=rows(f"quota {n}"), purpose="fine-tune")

        with pytest.raises(openai.RateLimitError) as full:
            send()
    assert full.value.response.headers["retry-after"]
