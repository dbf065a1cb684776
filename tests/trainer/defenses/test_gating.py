from pathlib import Path
from typing import Any

import pytest
import torch

from curator.errors import BadInputError, MissingError
from tests.trainer.proofs import (
    assert_gradient,
    attached,
    lm_loss,
    model_of,
    vectors_file,
)
from tests.trainer.tiny import (
    adapted_model,
    batch_of,
    rows,
    term_of,
    trainer_of,
)
from trainer.config.defences import (
    GatingSettings,
    KlSettings,
    LdifsSettings,
    TreftSettings,
)
from trainer.defenses.base import Batch
from trainer.defenses.gates import FILE, Gate, load_gates
from trainer.defenses.gating import Gating
from trainer.defenses.kl import Kl


def gate_parameters(defence: Gating) -> dict[str, torch.Tensor]:
    return dict(defence.gates.named_parameters())


def opened(defence: Gating) -> Gating:
    """The gates away from their start, drawn from a seed."""
    generator = torch.Generator().manual_seed(6)
    for parameter in gate_parameters(defence).values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return defence


def logits_of(model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return found


def test_at_the_start_the_gate_is_the_identity_bit_for_bit(llama: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        model, batch = adapted_model(llama, dtype=dtype), batch_of(rows(3), range(3))
        plain = logits_of(model, batch)
        defence = attached(model, GatingSettings())
        with defence.intervene(batch):
            assert torch.equal(logits_of(model, batch), plain)
        with opened(defence).intervene(batch):
            assert not torch.allclose(logits_of(model, batch), plain)
        assert torch.equal(logits_of(model, batch), plain)


def test_gate_and_reversal_sum_to_two() -> None:
    gate = Gate(16, 24, "cpu", torch.float64)
    torch.nn.init.normal_(gate.weight)
    hidden = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        forward, reverse = gate(hidden), gate(hidden, reverse=True)
        expected = 2.0 / (1.0 + torch.exp(-(hidden @ gate.weight.T + gate.bias)))
    torch.testing.assert_close(forward + reverse, torch.full_like(forward, 2.0), rtol=0, atol=1e-15)
    torch.testing.assert_close(forward, expected)
    assert float((forward - 1.0).abs().max()) > 0.5


@pytest.mark.parametrize("reverse", [False, True])
def test_gates_multiply_the_heads_output_before_its_projection(llama: Path, tmp_path: Path, reverse: bool) -> None:
    """The first layer's attention output from dumped activations, in numpy."""
    model, batch = adapted_model(llama).eval(), batch_of(rows(3), range(3))
    defence = opened(attached(model, GatingSettings(layers=(1,))))
    defence.save(tmp_path)
    attention = model.get_base_model().base_model.layers[0].self_attn
    kept: dict[str, torch.Tensor] = {}
    handles = [
        attention.register_forward_pre_hook(
            lambda module, args, options: kept.update(h=options["hidden_states"]), with_kwargs=True
        ),
        attention.o_proj.register_forward_pre_hook(lambda module, args: kept.update(heads=args[0])),
    ]
    logits_of(model, batch)
    handles[1].remove()
    with load_gates(model, tmp_path / FILE, reverse=reverse):
        handles.append(attention.o_proj.register_forward_pre_hook(lambda module, args: kept.update(gated=args[0])))
        logits_of(model, batch)
    for handle in handles:
        handle.remove()
    weight, bias = (value.detach().numpy() for value in gate_parameters(defence).values())
    gate = 2.0 / (1.0 + torch.exp(torch.tensor(-(kept["h"].numpy() @ weight.T + bias))))
    expected = kept["heads"] * (2.0 - gate if reverse else gate)
    torch.testing.assert_close(kept["gated"], expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradient_equals_finite_differences_and_the_adapter_is_frozen(
    tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    model, batch = model_of(tmp_path_factory, kind), batch_of(rows(3), range(3))
    defence = opened(attached(model, GatingSettings()))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"ballast_gates.{name}" for name in gate_parameters(defence)}
    assert_gradient(lambda: lm_loss(defence, model, batch), gate_parameters(defence))


@pytest.mark.parametrize(
    ("settings", "cannot"),
    [(KlSettings(), ()), (LdifsSettings(layers=(1,)), (".2.",)), (TreftSettings(tokens="all"), (".2.",))],
)
def test_other_terms_reach_the_gates(llama: Path, settings: Any, cannot: tuple[str, ...]) -> None:
    """The reference has gates off: with B = 0 the terms measure what the gates do, and reach no later gate."""
    model, batch = adapted_model(llama, random_b=False), batch_of(rows(3), range(3))
    gating = opened(attached(model, GatingSettings()))
    other = attached(model, settings)

    def value() -> torch.Tensor:
        return term_with(gating, other, model, batch)

    assert value().item() > 1e-6
    parameters = {f".{name}": parameter for name, parameter in gate_parameters(gating).items()}
    assert_gradient(value, parameters, lambda name: any(part in name for part in cannot))


def term_with(gating: Gating, other: Any, model: Any, batch: Batch) -> torch.Tensor:
    """`other`'s term with the gates on in the student's forward and off in the reference's."""

    class Both(type(other)):  # type: ignore[misc]
        def intervene(self, batch: Batch) -> Any:
            return gating.gates.on(paused=lambda: self.paused)

    other.__class__ = Both
    try:
        return term_of(other, model, batch)
    finally:
        other.__class__ = Both.__mro__[1]


def test_training_moves_the_gates_alone_and_saves_them_beside_the_adapter(llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model, prepared = adapted_model(llama, dtype=torch.float32, random_b=False), rows(4)
    defence = Gating(GatingSettings())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    trainer = trainer_of(model, prepared, llama, [defence], output_dir=str(tmp_path), max_steps=5, learning_rate=3e-2)
    finish = trainer.get_batch_samples
    trainer.get_batch_samples = lambda *args: (losses.append(trainer.finish_step().get("loss")), finish(*args))[1]
    trainer.train()
    assert trainer.finish_step()["loss"] < 0.99 * losses[1]
    for name, parameter in model.named_parameters():
        if name in before:  # the gates came later
            assert torch.equal(parameter, before[name]), name
    assert all(torch.count_nonzero(p) for p in gate_parameters(defence).values())
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert defence.save(tmp_path / "adapter") == [FILE]
    assert all("lora_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    # Evaluation: the saved adapter without gates is the untouched model, and the trained model in eval is too.
    batch = batch_of(prepared, range(4))
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    untouched = logits_of(base, batch)
    assert torch.equal(logits_of(model.eval(), batch), untouched)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(logits_of(reloaded, batch), untouched)
    # Loaded, they act as in training; reversed, the other way; removed, not at all.
    with defence.intervene(batch):
        gated = logits_of(model, batch)
    hooks = load_gates(reloaded, tmp_path / "adapter" / FILE)
    assert torch.equal(logits_of(reloaded, batch), gated)
    hooks.remove()
    with load_gates(reloaded, tmp_path / "adapter" / FILE, reverse=True):
        assert not torch.allclose(logits_of(reloaded, batch), gated)
    assert torch.equal(logits_of(reloaded, batch), untouched)


def test_a_checkpoint_is_taken_up_again(llama: Path, tmp_path: Path) -> None:
    saved = opened(attached(adapted_model(llama), GatingSettings()))
    saved.save(tmp_path)
    other = attached(adapted_model(llama), GatingSettings())
    other.load(tmp_path)
    for name, parameter in gate_parameters(saved).items():
        assert torch.equal(gate_parameters(other)[name], parameter)


def test_gates_of_another_model_are_refused(llama: Path, tmp_path: Path) -> None:
    model = adapted_model(llama)
    with pytest.raises(MissingError, match="there is no file"):
        load_gates(model, tmp_path / "none")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(BadInputError, match="does not hold gates of this model"):
        load_gates(model, tmp_path / "text")
    with pytest.raises(BadInputError, match="does not hold gates of this model"):
        load_gates(model, vectors_file(tmp_path / "vectors"))
    with pytest.raises(BadInputError, match=r"gating: layers \[9\]"):
        attached(model, GatingSettings(layers=(9,)))


def test_gating_and_kl_train_together(llama: Path, tmp_path: Path) -> None:
    model = adapted_model(llama, dtype=torch.float32, random_b=False)
    trainer = trainer_of(
        model, rows(4), llama, [Gating(GatingSettings()), Kl(KlSettings())], output_dir=str(tmp_path), max_steps=3
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    assert trainer.finish_step()["kl"] > 1e-6
    # Switching the adapter off and on for the reference must not make it trainable again.
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("ballast_gates" in name)
        assert torch.equal(parameter, before[name]) == ("ballast_gates" not in name), name
