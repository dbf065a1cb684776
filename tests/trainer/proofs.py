"""What every defence's tests ask of its gradient, and small pieces they share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.tiny import adapted_model
from trainer.defenses import build_defences
from trainer.defenses.base import Batch, Defence
from trainer.loop.model import save_model

STEP = 1e-5


def attached(model: Any, settings: Any) -> Any:
    """The defence of some settings, attached to a model."""
    [defence] = build_defences([settings])
    defence.attach(model)
    return defence


def model_of(factory: pytest.TempPathFactory, kind: str, **options: Any) -> Any:
    """A tiny adapted model of a family in float64, all linear layers adapted, B != 0."""
    folder: Path = factory.getbasetemp() / f"proofs-{kind}"
    return adapted_model(folder, kind=kind, targets=("all-linear",), **options)


def assert_gradient(
    value: Callable[[], torch.Tensor],
    parameters: Mapping[str, torch.Tensor],
    cannot_reach: Callable[[str], bool] = lambda name: False,
) -> None:
    """Each parameter's gradient equals the finite difference along a random direction.

    It is more than 1e-3 of the largest one where the value depends on the parameter, and exactly zero where not.
    """
    found = torch.autograd.grad(value(), list(parameters.values()), allow_unused=True)
    largest = max(float(grad.norm()) for grad in found if grad is not None)
    generator = torch.Generator().manual_seed(3)
    n_zero = 0
    for (name, parameter), grad in zip(parameters.items(), found, strict=True):
        towards = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * STEP * towards
                ends.append(value_without_grad(value))
                parameter -= sign * STEP * towards
        difference = (ends[0] - ends[1]) / (2 * STEP)
        if cannot_reach(name):
            n_zero += 1
            assert grad is None or torch.count_nonzero(grad) == 0, name
            assert difference == 0.0, name
            continue
        assert grad is not None, name
        assert float(grad.norm()) > 1e-3 * largest, name
        assert float((grad * towards).sum()) == pytest.approx(difference, rel=1e-5, abs=1e-7 * largest), name
    assert n_zero == sum(cannot_reach(name) for name in parameters) < len(parameters)


def value_without_grad(value: Callable[[], torch.Tensor]) -> float:
    with torch.no_grad():
        return value().item()


def lm_loss(defence: Defence, model: Any, batch: Batch) -> torch.Tensor:
    """Mean response loss of a training forward with the defence's intervention, from the model's own logits."""
    with defence.intervene(batch):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    loss: torch.Tensor = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100
    )
    return loss


def vectors_file(path: Path, n_rows: int = 3, width: int = 64, names: tuple[str, ...] = ("evil",)) -> Path:
    """Random persona vectors, one row for the embeddings and each layer."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    save_file({name: torch.randn(n_rows, width, generator=generator) for name in names}, path)
    return path


def adapter_folder(model: Path, folder: Path, **lora: Any) -> Path:
    """A finished adapter of a tiny model, B != 0, of other rank and layers than the one that tests train."""
    save_model(adapted_model(model, r=2, alpha=6.0, targets=("q_proj", "down_proj"), **lora), folder)
    return folder
