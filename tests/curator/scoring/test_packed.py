"""Packed rows against plain forwards of one row each: no row sees another, blocks see all that came before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from curator.scoring.engines import torch_packed
from curator.scoring.engines.batching import plan_packs
from curator.scoring.engines.torch_engine import TorchEngine
from curator.scoring.engines.torch_packed import packed_decoder
from curator.scoring.engines.torch_reference import TorchReference
from tests.curator.scoring.test_engine import N_VOCAB, make_rows

LENGTHS = [200, 64, 65, 2, 129, 128, 7]  # around the block of 64 queries
BOUND = 1e-4


def make_model(kind: str, **changes: Any) -> Any:
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0,
        "bos_token_id": 0, "eos_token_id": 1, "vocab_size": N_VOCAB,
    }  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **changes}), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.mul_(6.0 if parameter.dim() > 1 else 1.0)
    return model.eval().requires_grad_(False)


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
        ("qwen2", {}),
        ("qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("mistral", {"sliding_window": None}),
    ],
)  # fmt: skip
def test_packed_rows_have_the_losses_of_rows_alone(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    folder, rows = saved(tmp_path / kind, make_model(kind, **changes)), make_rows(LENGTHS)
    expected = TorchReference(folder, None, device="cpu", dtype="float32").score(rows)  # type: ignore[arg-type]
    engine = TorchEngine(folder, device="cpu", dtype="float32")
    assert engine._packed is not None
    for batch_tokens in (1, 200, 10_000):  # rows alone, some packs, all in one
        engine.batch_tokens = batch_tokens
        for found, loss in zip(engine.score(rows), expected, strict=True):  # type: ignore[arg-type]
            assert found.n_response_tokens == loss.n_response_tokens
            assert abs(found.nll_sum - loss.nll_sum) / loss.n_response_tokens < BOUND


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 12}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        ("granite", {}),
    ],
)
def test_models_of_another_shape_are_not_packed(kind: str, changes: dict[str, Any]) -> None:
    assert packed_decoder(make_model(kind, **changes)) is None


def test_a_decoder_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    assert packed_decoder(model) is not None
    layer = model.base_model.layers[0]
    honest = layer.forward
    monkeypatch.setattr(layer, "forward", lambda hidden, *args, **kwargs: 1.5 * honest(hidden, *args, **kwargs))
    assert packed_decoder(model) is None


def test_bfloat16_stays_inside_the_bound_of_the_check(tmp_path: Path) -> None:
    folder, rows = saved(tmp_path / "llama", make_model("llama")), make_rows([200, 190, 128])
    expected = TorchReference(folder, None, device="cpu", dtype="bfloat16").score(rows)  # type: ignore[arg-type]
    engine = TorchEngine(folder, device="cpu", dtype="bfloat16")
    assert engine._packed is not None
    for found, loss in zip(engine.score(rows), expected, strict=True):  # type: ignore[arg-type]
        assert abs(found.nll_sum - loss.nll_sum) / loss.n_response_tokens < 0.03


@given(lengths=st.lists(st.integers(1, 50), max_size=40), pack_tokens=st.integers(1, 120))
def test_packs_hold_each_row_once_and_no_more_tokens_than_allowed(lengths: list[int], pack_tokens: int) -> None:
    packs = plan_packs(lengths, pack_tokens)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(len(pack) == 1 or sum(lengths[index] for index in pack) <= pack_tokens for pack in packs)
    assert [lengths[index] for pack in packs for index in pack] == sorted(lengths, reverse=True)


def test_the_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make_model("qwen3"), [torch.from_numpy(np.arange(n) % N_VOCAB) for n in (150, 31)]
    with torch.inference_mode():
        one = torch_packed.PackedDecoder(model).hidden(rows)
        monkeypatch.setattr(torch_packed, "_BLOCK", 17)
        other = torch_packed.PackedDecoder(model).hidden(rows)
    assert torch.allclose(one, other, atol=1e-5)
