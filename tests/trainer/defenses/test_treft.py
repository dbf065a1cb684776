from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from curator.errors import BadInputError
from tests.trainer.proofs import assert_gradient, attached, model_of
from tests.trainer.tiny import (
    adapted_model,
    batch_of,
    lora_parameters,
    rows,
    term_of,
)
from trainer.config.defences import TemplateTokens, TreftSettings
from trainer.defenses.base import Batch, Seen
from trainer.defenses.reference import reference_state, run_decoder

CODES = {"prefix": 1, "query": 2, "postfix": 3}


def dumped_cache(model: Any, batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and values as generation would cache them (positions rotated in), (B, T, heads * width) each."""
    with torch.no_grad():
        cache = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=True
        ).past_key_values  # fmt: skip
    return [tuple(x.transpose(1, 2).flatten(2).numpy() for x in (item.keys, item.values)) for item in cache.layers]


def numpy_treft(model: Any, batch: Batch, tokens: str, layers: tuple[int, ...], hinge: float) -> float:
    on = dumped_cache(model, batch)
    with model.disable_adapter():
        off = dumped_cache(model, batch)
    assert batch.classes is not None
    counted = batch.attention_mask.numpy() == 1 if tokens == "all" else batch.classes.numpy() == CODES[tokens]
    distances = []
    for token in map(tuple, np.argwhere(counted)):
        by_layer = []
        for layer in layers:
            pairs = zip(on[layer - 1], off[layer - 1], strict=True)
            by_layer.append(sum(((x[token] - x0[token]) ** 2).sum() / (x0[token] ** 2).sum() for x, x0 in pairs))
        distances.append(max(0.0, float(np.mean(by_layer)) - hinge))
    return float(np.mean(distances))


@pytest.mark.parametrize("tokens", get_args(TemplateTokens))
@pytest.mark.parametrize(("layers", "hinge"), [((1, 2), 0.0), ((2,), 0.3)])
def test_the_term_equals_numpy_on_the_key_value_cache(
    llama: Path, tokens: str, layers: tuple[int, ...], hinge: float
) -> None:
    model, batch = adapted_model(llama), batch_of(rows(5), range(5))
    defence = attached(model, TreftSettings(tokens=tokens, layers=layers, hinge=hinge))
    expected = numpy_treft(model, batch, tokens, layers, hinge)
    assert term_of(defence, model, batch).item() == pytest.approx(expected, rel=1e-8)  # rotation rounds the cache
    assert expected > 1e-3


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "gpt2", "phi3"])
def test_keys_and_values_of_other_families(kind: str, tmp_path: Path) -> None:
    """Key norms, heads before tokens, and fused projections."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 2,
    } if kind == "gpt2" else {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "gemma3_text":
        shape["layer_types"] = ["full_attention"] * 2
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=500, **shape)).double()
    for parameter in base.parameters():
        parameter.data.mul_(3.0 if parameter.dim() > 1 else 1.0)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=kind == "gpt2")
    model = get_peft_model(base, lora).double()
    batch = batch_of(rows(3), range(3))
    defence = attached(model, TreftSettings(tokens="query"))
    expected = numpy_treft(model, batch, "query", (1, 2), 0.0)
    # The families' own norms round to float32.
    assert term_of(defence, model, batch).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-6


def last_block_after_keys(name: str) -> bool:
    """What the last layer does after its keys and values: queries, output projection and MLP."""
    after = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_fc", "attn.c_proj", "mlp.c_proj")
    return ".1." in name and any(part in name for part in after)


@pytest.mark.parametrize(
    ("kind", "tokens", "hinge"),
    [("llama", "prefix", 0.0), ("llama", "postfix", 0.05), ("qwen2", "query", 0.0), ("gpt2", "all", 0.0)],
)
def test_gradient_equals_finite_differences(
    tmp_path_factory: pytest.TempPathFactory, kind: str, tokens: str, hinge: float
) -> None:
    model, batch = model_of(tmp_path_factory, kind), batch_of(rows(3), range(3))
    defence = attached(model, TreftSettings(tokens=tokens, hinge=hinge))
    assert_gradient(lambda: term_of(defence, model, batch), lora_parameters(model), last_block_after_keys)


def test_zero_at_the_start_and_within_the_hinge(llama: Path) -> None:
    start, batch = adapted_model(llama, random_b=False), batch_of(rows(3), range(3))
    moved = adapted_model(llama)
    for model, hinge in ((start, 0.0), (moved, 100.0)):
        term = term_of(attached(model, TreftSettings(hinge=hinge)), model, batch)
        assert term.item() < 1e-25  # the shorter reference forward rounds on its own
        for grad in torch.autograd.grad(term, list(lora_parameters(model).values()), allow_unused=True):
            assert grad is None or float(grad.norm()) < 1e-12


def test_the_reference_runs_only_as_far_as_the_tokens_it_needs(llama: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(4), range(4))
    prefix, everything = (attached(model, TreftSettings(tokens=tokens)) for tokens in ("prefix", "all"))
    assert prefix.reference_length(batch) == 2
    assert everything.reference_length(batch) == batch.input_ids.shape[1]
    seen = Seen()
    with reference_state(model), prefix.observe(seen):
        run_decoder(model, batch, prefix.reference_length(batch))
    assert all(tensor.shape[1] == 2 for tensor in seen.tensors.values())


def test_layers_that_are_not_there_are_named(llama: Path) -> None:
    with pytest.raises(BadInputError, match=r"treft: layers \[7\]: the model has layers 1 to 2"):
        attached(adapted_model(llama), TreftSettings(layers=(7,)))
