import json
from pathlib import Path
from typing import Any, get_args

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
    lora_parameters,
    rows,
    trainer_of,
)
from trainer.config.defences import KlSettings, Schedule, SteeringSettings, TokenScope
from trainer.defenses.base import Batch
from trainer.defenses.kl import Kl
from trainer.defenses.steering import Steering, read_vector


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vectors_file(tmp_path_factory.mktemp("vectors") / "evil.safetensors")


def hidden_rows(model: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
    """The residual stream, (B, T, D) each: what the first block, the second block and the final norm are given.

    (transformers records `hidden_states` before later hooks change a block's output.)
    """
    decoder = model.get_base_model().base_model
    kept: list[torch.Tensor] = []
    modules = [*decoder.layers, decoder.norm]
    handles = [module.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0])) for module in modules]
    with torch.no_grad():
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for handle in handles:
        handle.remove()
    return tuple(kept)


@pytest.mark.parametrize("scope", get_args(TokenScope))
def test_row_l_of_the_vector_is_added_to_hidden_states_l(llama: Path, vectors: Path, scope: str) -> None:
    model, batch = adapted_model(llama), batch_of(rows(4), range(4))
    defence = attached(model, SteeringSettings(vectors=vectors, alpha=2.0, layers=(1,), tokens=scope))
    plain = hidden_rows(model, batch)
    with defence.intervene(batch):
        steered = hidden_rows(model, batch)
    shift = 2.0 * read_vector(vectors, None, (3, 64))[1].double().expand_as(plain[1])
    if scope == "response":
        shift = shift * (batch.labels != -100)[..., None]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        assert torch.equal(model(**inputs, output_hidden_states=True).hidden_states[1], plain[1])
    assert torch.equal(steered[0], plain[0])
    torch.testing.assert_close(steered[1], plain[1] + shift)
    assert not torch.allclose(steered[2], plain[2])
    for one, other in zip(hidden_rows(model, batch), plain, strict=True):  # afterwards nothing is left
        assert torch.equal(one, other)


@pytest.mark.parametrize(("kind", "scope"), [("llama", "all"), ("gpt2", "response")])
def test_gradient_of_the_steered_loss(
    tmp_path_factory: pytest.TempPathFactory, vectors: Path, kind: str, scope: str
) -> None:
    model, batch = model_of(tmp_path_factory, kind), batch_of(rows(3), range(3))
    settings = SteeringSettings(vectors=vectors, alpha=1.0, layers=(1, 2), tokens=scope)
    defence, parameters = attached(model, settings), lora_parameters(model)
    assert_gradient(lambda: lm_loss(defence, model, batch), parameters)
    steered, plain = (
        torch.autograd.grad(lm_loss(item, model, batch), list(parameters.values()))
        for item in (defence, Kl(KlSettings()))
    )
    moved = sum(float((one - other).norm()) for one, other in zip(steered, plain, strict=True))
    assert moved > 1e-3 * sum(float(grad.norm()) for grad in plain)


def test_alpha_follows_its_schedule_and_is_zero_outside_a_window(llama: Path, vectors: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(2), range(2))
    settings = SteeringSettings(vectors=vectors, layers=(1,), alpha=4.0, schedule="linear:0:10")
    defence = attached(model, settings)
    for step, alpha in ((0, 4.0), (5, 2.0), (10, 0.0)):
        at = Batch(batch.input_ids, batch.labels, batch.attention_mask, batch.counts, step, 100)
        with defence.intervene(at):
            shift = hidden_rows(model, batch)[1] - hidden_rows_without(defence, model, batch)[1]
        expected = alpha * read_vector(vectors, None, (3, 64))[1].double()
        torch.testing.assert_close(shift[0, 0], expected, atol=1e-9, rtol=1e-9)
    window = Steering(settings.model_copy(update={"schedule": Schedule(shape="window", first_step=1)}))
    assert not window.active(batch)


def hidden_rows_without(defence: Any, model: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
    defence.paused = True
    found = hidden_rows(model, batch)
    defence.paused = False
    return found


def test_steered_training_leaves_no_trace_in_evaluation_or_in_the_adapter(
    llama: Path, vectors: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    batch, trained = batch_of(rows(4), range(4)), {}
    for alpha in (0.0, 3.0):
        model = adapted_model(llama, dtype=torch.float32, random_b=False)
        defence = Steering(SteeringSettings(vectors=vectors, alpha=alpha))
        trainer = trainer_of(model, rows(4), llama, [defence], output_dir=str(tmp_path), max_steps=2)
        trainer.train()
        trained[alpha] = {name: p.detach().clone() for name, p in lora_parameters(model).items()}
    assert any(not torch.equal(trained[0.0][name], trained[3.0][name]) for name in trained[0.0])
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert all("lora_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert "steering" not in json.dumps(json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()))
    fresh = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    for one, other in zip(hidden_rows(model.eval(), batch), hidden_rows(reloaded, batch), strict=True):
        assert torch.equal(one, other)


def test_the_default_layer_lies_at_five_sevenths_of_the_depth(llama: Path, vectors: Path) -> None:
    assert list(attached(adapted_model(llama), SteeringSettings(vectors=vectors))._blocks) == [1]
    assert round(5 / 7 * 28) == 20


def test_vectors_that_do_not_fit_are_refused(llama: Path, tmp_path: Path) -> None:
    model = adapted_model(llama)
    two = vectors_file(tmp_path / "two.safetensors", names=("evil", "sycophancy"))
    assert attached(model, SteeringSettings(vectors=two, vector="evil"))
    (tmp_path / "text").write_text("no tensors")
    other = vectors_file(tmp_path / "other.safetensors", n_rows=5)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"vectors": tmp_path / "none"}, MissingError, "there is no file"),
        ({"vectors": tmp_path / "text"}, BadInputError, "not a safetensors file"),
        ({"vectors": two}, BadInputError, "holds evil, sycophancy: choose one"),
        ({"vectors": two, "vector": "kind"}, BadInputError, "has no kind; it holds evil"),
        ({"vectors": other}, BadInputError, r"shape \(5, 64\); this model needs \(3, 64\)"),
        ({"vectors": two, "vector": "evil", "layers": (3,)}, BadInputError, r"layers \[3\]: the model has"),
    ]
    for settings, error, message in cases:
        with pytest.raises(error, match=message):
            attached(model, SteeringSettings(**settings))


def test_the_vectors_count_by_content_not_by_place(vectors: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(vectors.read_bytes())
    one, two = (SteeringSettings(vectors=path).identity() for path in (vectors, copy))
    assert one == two
    assert one != SteeringSettings(vectors=vectors_file(tmp_path / "x", width=8)).identity()
