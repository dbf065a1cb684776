"""The proofs' own proof: with a defence's gradient cut, or changed a little, the checks that hold it must fail.

(A public LDIFS extracts its features under no-grad, so its term does nothing: a test must see that.)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from curator.errors import BadInputError
from tests.trainer.proofs import (
    adapter_folder,
    assert_gradient,
    attached,
    lm_loss,
    vectors_file,
)
from tests.trainer.tiny import (
    adapted_model,
    batch_of,
    lora_parameters,
    rows,
    term_of,
)
from trainer.config.defences import (
    GatingSettings,
    InoculationAdapterSettings,
    KlSettings,
    LdifsSettings,
    SteeringSettings,
    TreftSettings,
)
from trainer.defenses import inoculation_adapter, kl, ldifs, treft
from trainer.defenses.base import Defence
from trainer.defenses.gates import Gate
from trainer.defenses.steering import Steering

Patch = pytest.MonkeyPatch


def scaled_kl(factor: float) -> Callable[[Patch], None]:
    def cut(patch: Patch) -> None:
        whole = kl.kl_and_grad

        def scaled(*args: Any) -> Any:
            value_C, grad_CV = whole(*args)
            return value_C, grad_CV.mul_(factor)

        patch.setattr(kl, "kl_and_grad", scaled)

    return cut


def detached(module: Any, name: str, which: Callable[[int], bool]) -> Callable[[Patch], None]:
    """Cut the first argument of a function of a module at the calls (counted from 0) that `which` chooses."""

    def cut(patch: Patch) -> None:
        whole, n_calls = getattr(module, name), [0]

        def counted(found: torch.Tensor, *others: Any) -> Any:
            n_calls[0] += 1
            return whole(found.detach() if which(n_calls[0] - 1) else found, *others)

        patch.setattr(module, name, counted)

    return cut


TWO_LAYERS = LdifsSettings(layers=(1, 2))
# What the check must say, so that a broken set-up is not a proof: the value has no gradient, or that of a parameter
# (its name is the message) is not what it should be.
NOWHERE = (RuntimeError, "does not require grad and does not have a grad_fn")
WRONG = (AssertionError, r"^base_model\.model\..*\.lora_[AB]\.default\.weight")
TERMS = {
    "kl": (KlSettings(), scaled_kl(0.0), WRONG),
    "kl, by 0.1 %": (KlSettings(direction="reference_student"), scaled_kl(1.001), WRONG),
    # Each layer is scaled to length 1 twice, student first: call 0 of four is the student's first layer.
    "ldifs": (TWO_LAYERS, detached(ldifs, "_unit", lambda call: True), NOWHERE),
    "ldifs, one layer": (TWO_LAYERS, detached(ldifs, "_unit", lambda call: call % 4 == 0), WRONG),
    # Keys, then values, of each layer.
    "treft": (TreftSettings(), detached(treft, "_relative", lambda call: True), NOWHERE),
    "treft, values alone": (
        TreftSettings(tokens="all"),
        detached(treft, "_relative", lambda call: call % 2 == 1),
        WRONG,
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_cut_term_fails_its_gradient_check(llama: Path, monkeypatch: Patch, name: str) -> None:
    settings, cut, (error, message) = TERMS[name]
    model, batch = adapted_model(llama), batch_of(rows(3), range(3))
    defence = attached(model, settings)
    cut(monkeypatch)
    # The trainer refuses a term without any gradient; with that guard off the check itself has to see it.
    monkeypatch.setattr(Defence, "acting", lambda self, term: term)
    after_last_keys = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj") if "treft" in name else ()
    with pytest.raises(error, match=message):
        assert_gradient(
            lambda: term_of(defence, model, batch), lora_parameters(model),
            lambda key: ".1." in key and any(part in key for part in after_last_keys),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["ldifs", "treft"])
def test_the_trainer_refuses_a_term_that_is_cut_altogether(llama: Path, monkeypatch: Patch, name: str) -> None:
    settings, cut, _ = TERMS[name]
    model, batch = adapted_model(llama), batch_of(rows(3), range(3))
    defence = attached(model, settings)
    cut(monkeypatch)
    with pytest.raises(BadInputError, match=f"{name}: no trained parameter reaches what it observes"):
        term_of(defence, model, batch)


def test_a_gradient_where_none_may_be_fails_the_check(llama: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(3), range(3))
    defence = attached(model, TWO_LAYERS)
    with pytest.raises(AssertionError, match=r"layers\.1"):
        assert_gradient(lambda: term_of(defence, model, batch), lora_parameters(model), lambda key: "layers.1." in key)


def test_steering_that_cuts_the_residual_stream_fails_its_check(
    llama: Path, monkeypatch: Patch, tmp_path: Path
) -> None:
    model, batch = adapted_model(llama), batch_of(rows(3), range(3))
    settings = SteeringSettings(vectors=vectors_file(tmp_path / "v.safetensors"), layers=(1,))
    defence, whole = attached(model, settings), Steering._adder

    def cutting(self: Steering, *args: Any) -> Any:
        add = whole(self, *args)
        return lambda module, inputs, output: add(
            module, inputs, output.detach() if isinstance(output, torch.Tensor) else (output[0].detach(), *output[1:])
        )

    monkeypatch.setattr(Steering, "_adder", cutting)
    with pytest.raises(AssertionError, match=r"layers\.0"):
        assert_gradient(lambda: lm_loss(defence, model, batch), lora_parameters(model))


def test_a_frozen_adapter_that_cuts_its_own_path_fails_its_check(
    llama: Path, monkeypatch: Patch, tmp_path: Path
) -> None:
    model, batch = adapted_model(llama), batch_of(rows(3), range(3))
    defence = attached(model, InoculationAdapterSettings(adapter=adapter_folder(llama, tmp_path / "trait")))
    detached(inoculation_adapter, "linear", lambda call: True)(monkeypatch)
    with pytest.raises(AssertionError, match=r"layers\.0"):
        assert_gradient(lambda: lm_loss(defence, model, batch), lora_parameters(model))


def test_gates_without_gradient_fail_their_check(llama: Path, monkeypatch: Patch) -> None:
    model, batch = adapted_model(llama), batch_of(rows(3), range(3))
    defence, whole = attached(model, GatingSettings()), Gate.forward
    monkeypatch.setattr(Gate, "forward", lambda self, *args: whole(self, *args).detach())
    with pytest.raises(RuntimeError, match="does not require grad"):
        assert_gradient(lambda: lm_loss(defence, model, batch), dict(defence.gates.named_parameters()))
