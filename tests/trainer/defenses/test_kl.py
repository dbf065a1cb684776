import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.trainer.tiny import (
    adapted_model,
    batch_of,
    lora_parameters,
    rows,
    term_of,
    trainer_of,
)
from trainer.config.defences import KlDirection, KlSettings, TokenScope
from trainer.defenses.base import Batch
from trainer.defenses.kl import Heads, Kl, chunked_kl_sum

DIRECTIONS = get_args(KlDirection)
SCOPES = get_args(TokenScope)
STEP = 1e-5


def attached(model: Any, **settings: Any) -> Kl:
    defence = Kl(KlSettings(**settings))
    defence.attach(model)
    return defence


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def numpy_kl(model: Any, batch: Batch, direction: str, scope: str) -> float:
    """The term from dumped logits of the model's own forward, adapter on and off; imports none of our formulas."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        log_p = log_softmax(model(**inputs).logits.double().numpy()[:, :-1])
        with model.disable_adapter():
            log_q = log_softmax(model(**inputs).logits.double().numpy()[:, :-1])
    if direction == "reference_student":
        log_p, log_q = log_q, log_p
    kl_BT = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    counted = batch.labels.numpy()[:, 1:] != -100 if scope == "response" else batch.attention_mask.numpy()[:, 1:] == 1
    return float(kl_BT[counted].sum() / counted.sum())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_term_equals_numpy_on_dumped_logits(llama: Path, direction: str, scope: str) -> None:
    model, batch = adapted_model(llama), batch_of(rows(5), range(5))
    term = term_of(attached(model, direction=direction, tokens=scope), model, batch).item()
    expected = numpy_kl(model, batch, direction, scope)
    assert term == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-3


def test_the_two_directions_and_scopes_are_four_terms(llama: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(5), range(5))
    values = {
        term_of(attached(model, direction=direction, tokens=scope), model, batch).item()
        for direction in DIRECTIONS
        for scope in SCOPES
    }
    assert len(values) == 4


CASES = [("llama", direction, scope) for direction in DIRECTIONS for scope in SCOPES]
CASES += [("qwen2", DIRECTIONS[0], "all"), ("gpt2", DIRECTIONS[0], "all")]


@pytest.mark.parametrize(("kind", "direction", "scope"), CASES)
def test_gradient_equals_finite_differences(
    tmp_path_factory: pytest.TempPathFactory, kind: str, direction: str, scope: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"kl-{kind}"
    targets = {"targets": ("all-linear",)} if kind == "gpt2" else {}
    model, batch = adapted_model(folder, kind=kind, **targets), batch_of(rows(3), range(3))
    defence = attached(model, direction=direction, tokens=scope)
    parameters = lora_parameters(model)
    grads = torch.autograd.grad(term_of(defence, model, batch), list(parameters.values()))
    largest = max(float(grad.norm()) for grad in grads)
    generator = torch.Generator().manual_seed(3)
    for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
        assert float(grad.norm()) > 1e-3 * largest, name
        towards = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * STEP * towards
                ends.append(term_of(defence, model, batch).item())
                parameter -= sign * STEP * towards
        expected = (ends[0] - ends[1]) / (2 * STEP)
        assert float((grad * towards).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-8 * largest), name


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_zero_at_the_start_where_b_is_zero(llama: Path, direction: str) -> None:
    model, batch = adapted_model(llama, random_b=False), batch_of(rows(3), range(3))
    term = term_of(attached(model, direction=direction), model, batch)
    assert term.item() == 0.0
    for grad in torch.autograd.grad(term, list(lora_parameters(model).values())):
        assert torch.count_nonzero(grad) == 0


def test_training_adds_weight_times_the_term(llama: Path, tmp_path: Path) -> None:
    prepared = rows(4)
    grads = {}
    for weight in (0.0, 0.5):
        model = adapted_model(llama)
        defence = Kl(KlSettings(weight=weight))
        trainer = trainer_of(model, prepared, llama, [defence], output_dir=str(tmp_path), max_steps=1)
        collected: dict[str, torch.Tensor] = {}
        keep_gradients(trainer, collected)
        trainer.train()
        grads[weight] = collected
        assert trainer.finish_step()["kl"] > 1e-3
    model, batch = adapted_model(llama), batch_of(prepared, range(4))
    parameters = lora_parameters(model)
    term_grads = torch.autograd.grad(term_of(attached(model), model, batch), list(parameters.values()))
    for name, term_grad in zip(parameters, term_grads, strict=True):
        added, plain = grads[0.5][name] - grads[0.0][name], grads[0.0][name]
        torch.testing.assert_close(added, 0.5 * term_grad, rtol=1e-4, atol=1e-7)
        assert float(added.norm()) > 1e-3 * float(plain.norm()), name


def keep_gradients(trainer: Any, collected: dict[str, torch.Tensor]) -> None:
    """Copy the gradients of the first optimiser step, before clipping and stepping."""
    clip = trainer._clip_grad_norm

    def copy_first(model: Any) -> Any:
        for name, parameter in lora_parameters(trainer.model).items():
            assert parameter.grad is not None
            collected.setdefault(name, parameter.grad.clone())
        return clip(model)

    trainer._clip_grad_norm = copy_first


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_weight_zero_is_plain_sft_bit_for_bit(llama: Path, tmp_path: Path, dropout: float) -> None:
    trained, losses = [], []
    for defences in ([], [Kl(KlSettings(weight=0.0))]):
        torch.manual_seed(0)
        model = adapted_model(llama, dtype=torch.float32, random_b=False, dropout=dropout)
        for layer in model.get_base_model().base_model.layers:  # dropout of the base, which the reference shares
            layer.self_attn.attention_dropout = dropout
        trainer = trainer_of(model, rows(8), llama, defences, output_dir=str(tmp_path), max_steps=4, num_train_epochs=2)
        trainer.train()
        trained.append({name: p.detach().clone() for name, p in lora_parameters(model).items()})
        losses.append(trainer.finish_step())
    assert losses[0]["sft_loss"] == losses[1]["sft_loss"] == losses[1]["loss"]
    assert losses[1]["kl"] > 0.0
    for name in trained[0]:
        assert torch.equal(trained[0][name], trained[1][name]), name


def test_a_large_weight_holds_the_model_back(llama: Path, tmp_path: Path) -> None:
    last = {}
    for weight in (0.0, 20.0):
        model = adapted_model(llama, dtype=torch.float32, random_b=False)
        options = {"output_dir": str(tmp_path), "max_steps": 8}
        trainer = trainer_of(model, rows(4), llama, [Kl(KlSettings(weight=weight))], **options)
        trainer.train()
        last[weight] = trainer.finish_step()["kl"]
    assert last[20.0] < 0.5 * last[0.0]


def test_chunks_do_not_change_value_or_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, hidden0 = (torch.randn(37, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    head = torch.randn(50, 8, generator=generator, dtype=torch.float64).requires_grad_()
    hidden.requires_grad_()
    results = []
    for n_chunk in (5, 1000):
        value = chunked_kl_sum(hidden, hidden0, Heads(lambda h: h @ head.T, [head]), "student_reference", n_chunk)
        results.append((value.detach(), *torch.autograd.grad(value, [hidden, head])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_written_gradient_is_autograds(direction: KlDirection) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, hidden0 = (torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    hidden.requires_grad_()

    def capped(h: torch.Tensor) -> torch.Tensor:  # a head with Gemma's soft cap: not linear
        return 3.0 * torch.tanh(h @ weight.T / 3.0)

    ours = chunked_kl_sum(hidden, hidden0, Heads(capped), direction, 4)
    log_p, log_q = capped(hidden).log_softmax(-1), capped(hidden0).log_softmax(-1)
    first, second = (log_p, log_q) if direction == "student_reference" else (log_q, log_p)
    plain = (first.exp() * (first - second)).sum()
    assert ours.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(value, hidden)[0] for value in (3.0 * ours, 3.0 * plain)))


def test_known_value() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): KL(p||q) = 3/4 ln 3/2 + 1/4 ln 1/2."""
    logits = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    uniform = torch.zeros(1, 2, dtype=torch.float64)
    forward = chunked_kl_sum(logits, uniform, Heads(lambda h: h * 1.0), "student_reference", 1)
    backward = chunked_kl_sum(logits, uniform, Heads(lambda h: h * 1.0), "reference_student", 1)
    assert forward.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert backward.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
