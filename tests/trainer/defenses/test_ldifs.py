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
from trainer.config.defences import LdifsSettings, TokenScope
from trainer.defenses.base import Batch


def dumped_residuals(model: Any, batch: Batch) -> list[np.ndarray]:
    """The residual stream after each block: hidden_states[1], and what the final norm is given."""
    kept: list[torch.Tensor] = []
    norm = model.get_base_model().base_model.norm
    handle = norm.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        first = model(**inputs, output_hidden_states=True).hidden_states[1]
    handle.remove()
    return [first.numpy(), kept[0].numpy()]


def numpy_ldifs(model: Any, batch: Batch, layers: tuple[int, ...], scope: str) -> float:
    on = dumped_residuals(model, batch)
    with model.disable_adapter():
        off = dumped_residuals(model, batch)
    counted = batch.labels.numpy() != -100 if scope == "response" else batch.attention_mask.numpy() == 1
    total = 0.0
    for token in np.argwhere(counted):
        features = []
        for run in (on, off):
            vectors = [run[layer - 1][tuple(token)] for layer in layers]
            features.append(np.concatenate([vector / np.sqrt((vector**2).sum()) for vector in vectors]))
        total += ((features[0] - features[1]) ** 2).sum()
    return float(total / counted.sum())


@pytest.mark.parametrize("scope", get_args(TokenScope))
@pytest.mark.parametrize("layers", [(1,), (1, 2)])
def test_the_term_equals_numpy_on_dumped_activations(llama: Path, layers: tuple[int, ...], scope: str) -> None:
    model, batch = adapted_model(llama), batch_of(rows(5), range(5))
    term = term_of(attached(model, LdifsSettings(layers=layers, tokens=scope)), model, batch).item()
    expected = numpy_ldifs(model, batch, layers, scope)
    assert term == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-3


@pytest.mark.parametrize(
    ("kind", "layers", "scope"),
    [("llama", (1, 2), "all"), ("llama", (1,), "response"), ("qwen2", (2,), "all"), ("gpt2", (1,), "all")],
)
def test_gradient_equals_finite_differences(
    tmp_path_factory: pytest.TempPathFactory, kind: str, layers: tuple[int, ...], scope: str
) -> None:
    model, batch = model_of(tmp_path_factory, kind), batch_of(rows(3), range(3))
    defence = attached(model, LdifsSettings(layers=layers, tokens=scope))
    above = [f".{block}." for block in range(max(layers), 2)]  # blocks are counted from 0 in parameter names
    assert_gradient(
        lambda: term_of(defence, model, batch), lora_parameters(model), lambda name: any(part in name for part in above)
    )


def test_zero_at_the_start_where_b_is_zero(llama: Path) -> None:
    model, batch = adapted_model(llama, random_b=False), batch_of(rows(3), range(3))
    term = term_of(attached(model, LdifsSettings(every=1)), model, batch)
    assert term.item() == 0.0
    for grad in torch.autograd.grad(term, list(lora_parameters(model).values())):
        assert torch.count_nonzero(grad) == 0


def test_layers_are_every_nth_row_and_never_none(llama: Path) -> None:
    model = adapted_model(llama)
    assert list(attached(model, LdifsSettings(every=1))._blocks) == [1, 2]
    assert list(attached(model, LdifsSettings(every=2))._blocks) == [2]
    with pytest.raises(BadInputError, match="every 5th of 2 layers is none"):
        attached(model, LdifsSettings())
    with pytest.raises(BadInputError, match=r"layers \[3\]: the model has layers 1 to 2"):
        attached(model, LdifsSettings(layers=(1, 3)))


def test_an_adapter_that_the_features_cannot_see_is_an_error(llama: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(2), range(2))
    for name, parameter in lora_parameters(model).items():
        parameter.requires_grad_("layers.1." in name)
    with pytest.raises(BadInputError, match="ldifs: no trained parameter reaches"):
        term_of(attached(model, LdifsSettings(layers=(1,))), model, batch)
