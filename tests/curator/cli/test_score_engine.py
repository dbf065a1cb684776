"""`--engine auto`: the engine of the pool's aligned scorer, else vLLM where it is installed with a GPU, else torch."""

from types import SimpleNamespace
from typing import Any

import pytest

from curator.cli import score_options
from curator.scoring.engines import vllm_engine


def scorer(engine: str, role: str = "aligned", *, complete: bool = True) -> Any:
    return SimpleNamespace(identity={"engine": engine}, role=role, complete=complete)


@pytest.mark.parametrize(
    ("scorers", "on_gpu", "engine"),
    [
        ([], False, "torch"),
        ([], True, "vllm"),
        ([scorer("torch")], True, "torch"),
        ([scorer("vllm")], False, "vllm"),
        ([scorer("server")], False, "torch"),
        ([scorer("torch", "misaligned"), scorer("torch", complete=False)], True, "vllm"),
    ],
)
def test_the_engine_of_the_aligned_scorer_comes_first(
    scorers: list[Any], on_gpu: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_options, "vllm_on_gpu", lambda: on_gpu)
    assert score_options.automatic_engine(scorers) == engine


def test_vllm_counts_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not vllm_engine.vllm_on_gpu()  # this environment has no vLLM
    monkeypatch.setattr(vllm_engine, "installed_vllm", lambda: ("0.32.0", "cuda"))
    import torch

    for available in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert vllm_engine.vllm_on_gpu() is available
