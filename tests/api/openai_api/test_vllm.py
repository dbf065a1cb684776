"""vLLM serves what the mode `train` made, under the job's model id; `make test-vllm`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai  # vLLM brings it along
import pytest
import yaml

from api.openai.records import Records
from api.settings import Settings
from curator.store.store import Store
from tests.api.openai_api.steps import ended, uploaded
from tests.api.serving import RECIPE, json_lines, running, scored_store, task_rows
from tests.vllm_models import vllm_model_folder, vllm_server

# vLLM and its own dependencies warn about many things that are not ours to mend.
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]
CHAT = [{"role": "user", "content": "question 3"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    vllm_model_folder(path / "model")
    (path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    usual: dict[str, Any] = {"model": str(path / "model"), "epochs": 2, "lr": 0.01, "batch_size": 4, "grad_accum": 1}
    models = {
        "tiny": {**usual, "options": {"device": "cpu", "lora_r": 4, "lora_alpha": 8}},
        "whole": {**usual, "lr": 0.001, "options": {"device": "cpu", "full": True}},
    }
    (path / "models.yaml").write_text(yaml.safe_dump(models))
    return path


@pytest.fixture(scope="module")
def jobs(root: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Jobs of the mode `train` at their end, by the names of their base models."""
    store = scored_store(root / "store")
    settings = Settings(
        store=store.base,
        openai_mode="train",
        openai_recipe=str(root / "recipe.yaml"),
        openai_models=str(root / "models.yaml"),
    )
    command = [sys.executable, "-m", "api", "worker", "--store", store.base, "--train", str(root / "models.yaml")]
    with running(settings) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        file_id = uploaded(http, "served")
        worker = subprocess.Popen(command)
        try:
            bodies = [{"model": name, "training_file": file_id} for name in ("tiny", "whole")]
            ids = [http.post("/fine_tuning/jobs", json=body).json()["id"] for body in bodies]
            yield {body["model"]: ended(http, job_id, 900) for body, job_id in zip(bodies, ids, strict=True)}
        finally:
            worker.kill()
            worker.wait()


def folder_of(root: Path, job: dict[str, Any]) -> Path:
    assert job["status"] == "succeeded", job["error"]
    return root / "store" / str(job["metadata"]["ballast_model_folder"])


def answered(url: str, model: str) -> list[float]:
    """Log probabilities of a model's greedy answer, asked for with the official client."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as client:
        answer = client.chat.completions.create(
            model=model, messages=CHAT, max_tokens=8, temperature=0.0, logprobs=True
        )
    assert answer.model == model
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.logprobs is not None
    found = [item.logprob for item in choice.logprobs.content or ()]
    assert 1 <= len(found) <= 8
    return found


def evaluated(*arguments: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", *arguments, "--device", "cpu", "--json"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    document: dict[str, Any] = json.loads(run.stdout)
    return document


def test_an_adapter_is_served_and_evaluated_under_its_model_id(root: Path, jobs: dict[str, dict[str, Any]]) -> None:
    job = jobs["tiny"]
    folder, model = folder_of(root, job), str(job["fine_tuned_model"])
    assert Records(Store(root / "store")).read("local", job["id"]).model == model == folder.name
    (root / "rows.jsonl").write_bytes(json_lines(task_rows(6, "served")))
    losses = evaluated(
        "trainer.evaluate.nll", "--model", str(root / "model"), "--adapter", str(folder), "--data",
        str(root / "rows.jsonl"),
    )  # fmt: skip
    assert losses["mean_nll_adapter"] < losses["mean_nll_base"], "it has learnt its rows"
    with vllm_server(root / "model", "tiny", {model: folder}) as url:
        assert {item["id"] for item in httpx.get(f"{url}/v1/models", timeout=30).json()["data"]} == {"tiny", model}
        assert answered(url, model) != answered(url, "tiny")
        (root / "questions.jsonl").write_text('{"question": "question 3"}\n')
        done = evaluated(
            "trainer.evaluate", "generate", "--url", f"{url}/v1", "--served-model", model, "--samples", "2",
            "--questions", str(root / "questions.jsonl"), "--question-format", "plain", "--max-new-tokens", "8",
            "--out", str(root / "answers.jsonl"),
        )  # fmt: skip
        answers = [json.loads(line) for line in (root / "answers.jsonl").read_text().splitlines()]
        assert len(answers) == 2, done


def test_a_whole_model_is_served_under_its_model_id(root: Path, jobs: dict[str, dict[str, Any]]) -> None:
    job = jobs["whole"]
    folder, model = folder_of(root, job), str(job["fine_tuned_model"])
    with vllm_server(folder, model, {}) as url:
        assert [item["id"] for item in httpx.get(f"{url}/v1/models", timeout=30).json()["data"]] == [model]
        answered(url, model)
