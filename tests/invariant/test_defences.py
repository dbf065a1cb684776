"""Every defence in the product's own training loop: batch shapes, weight zero, checkpointing, windows, combinations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.proofs import adapter_folder, attached, vectors_file
from tests.trainer.tiny import (
    adapted_model,
    batch_of,
    lora_parameters,
    rows,
    term_of,
    trainer_of,
)
from trainer.config.defences import (
    GatingSettings,
    InoculationAdapterSettings,
    KlSettings,
    LdifsSettings,
    SteeringSettings,
    TreftSettings,
)
from trainer.defenses import build_defences


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vectors_file(tmp_path_factory.mktemp("vectors") / "evil.safetensors")


@pytest.fixture(scope="module")
def trait(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_folder(llama, tmp_path_factory.mktemp("trait") / "adapter")


@pytest.fixture(scope="module")
def files(vectors: Path, trait: Path) -> dict[str, Path]:
    return {"vectors": vectors, "adapter": trait}


TERMS = [
    KlSettings(rows="safe"),
    KlSettings(rows="safe", tokens="response", direction="reference_student"),
    KlSettings(estimator="sampled"),
    LdifsSettings(every=1),
    LdifsSettings(layers=(1,), tokens="response"),
    *(TreftSettings(tokens=tokens, hinge=0.05) for tokens in ("prefix", "postfix", "query", "all")),
]


@pytest.mark.parametrize("settings", TERMS, ids=lambda item: "-".join(map(str, item.model_dump().values()))[-40:])
def test_shares_of_a_term_add_up(llama: Path, settings: Any) -> None:
    model, prepared = adapted_model(llama), rows(8)
    defence = attached(model, settings)
    whole = batch_of(prepared, range(8))
    parameters = list(lora_parameters(model).values())
    term = term_of(defence, model, whole)
    grads = torch.autograd.grad(term, parameters, allow_unused=True)
    for size in (1, 4):
        shares = [
            term_of(defence, model, batch_of(prepared, range(start, start + size), whole.counts))
            for start in range(0, 8, size)
        ]
        assert sum(share.item() for share in shares) == pytest.approx(term.item(), rel=1e-10)
        summed = torch.autograd.grad(sum(shares), parameters, allow_unused=True)  # type: ignore[arg-type]
        for one, other in zip(summed, grads, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "settings", [KlSettings(), LdifsSettings(every=1), TreftSettings(tokens="all")], ids=lambda item: item.name
)
def test_rows_that_only_fill_up_a_batch_count_for_nothing(llama: Path, settings: Any) -> None:
    """Several processes share the last batches of an epoch; what fills them has position -1 and one token."""
    model, prepared = adapted_model(llama), rows(3)
    defence = attached(model, settings)
    expected = term_of(defence, model, batch_of(prepared, range(3))).item()
    batch = batch_of(prepared, [0, 1, 2, 0], batch_of(prepared, range(3)).counts)
    mask = batch.attention_mask.clone()
    mask[3, 1:] = 0
    assert batch.rows is not None
    filled = replace(batch, attention_mask=mask, rows=torch.tensor([0, 1, 2, -1]))
    assert term_of(defence, model, filled).item() == pytest.approx(expected, rel=1e-10)


def settings_of(name: str, files: dict[str, Path], weight: float) -> list[Any]:
    found = {
        "kl": KlSettings(weight=weight),
        "ldifs": LdifsSettings(weight=weight, every=1),
        "treft": TreftSettings(weight=weight),
        "steering": SteeringSettings(vectors=files["vectors"], alpha=weight, layers=(1, 2)),
        "inoculation_adapter": InoculationAdapterSettings(adapter=files["adapter"], scale=weight),
        "gating": GatingSettings(),
    }
    return list(found.values()) if name == "all" else [found[item] for item in name.split("+")]


def train(folder: Path, out: Path, settings: list[Any], **options: Any) -> tuple[Any, Any]:
    """A model after two steps of eight rows by plain descent, and its trainer."""
    model = adapted_model(folder, dtype=options.pop("dtype", torch.float64))
    defaults = {
        "per_device_train_batch_size": 8, "max_steps": 2, "optim": "sgd", "lr_scheduler_type": "constant",
        "learning_rate": 0.05, "max_grad_norm": 0.0,
    }  # fmt: skip
    defences = build_defences(settings)
    trainer = trainer_of(model, rows(16), folder, defences, output_dir=str(out), **(defaults | options))
    trainer.train()
    return model, trainer


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["kl+ldifs+treft+steering", "all"])
def test_accumulation_trains_the_same_weights(llama: Path, files: dict[str, Path], tmp_path: Path, name: str) -> None:
    settings = settings_of(name, files, 0.5)
    start = trained(adapted_model(llama)) if "all" not in name else None
    model, trainer = train(llama, tmp_path, settings)
    whole, parts = trained(model), trainer.finish_step()
    assert {"kl", "ldifs", "treft"} <= set(parts)
    for size, accumulation in ((4, 2), (1, 8)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        other, other_trainer = train(llama, tmp_path, settings, **options)
        assert other_trainer.finish_step() == pytest.approx(parts, rel=1e-5)
        for key, value in trained(other).items():  # TRL's fused head works in float32
            moved = (whole[key] - start[key]).norm() if start else whole[key].norm()
            assert float((whole[key] - value).norm()) < 1e-4 * float(moved), key


@pytest.mark.parametrize("name", ["ldifs", "treft", "steering", "inoculation_adapter", "kl+ldifs+treft+steering"])
def test_weight_zero_is_plain_sft_bit_for_bit(llama: Path, files: dict[str, Path], tmp_path: Path, name: str) -> None:
    options = {"dtype": torch.float32, "optim": "adamw_torch"}
    plain, plain_trainer = train(llama, tmp_path, [], **options)
    model, trainer = train(llama, tmp_path, settings_of(name, files, 0.0), **options)
    parts = trainer.finish_step()
    assert plain_trainer.finish_step()["loss"] == parts["loss"] == parts["sft_loss"]
    assert all(value > 0.0 for value in parts.values())
    for key, value in trained(plain).items():
        assert torch.equal(trained(model)[key], value), key


@pytest.mark.parametrize("name", ["kl", "ldifs", "treft", "steering", "inoculation_adapter", "all"])
def test_gradient_checkpointing_changes_nothing(llama: Path, files: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Blocks run again in the backward pass: what defences record and change must be the same there."""
    settings = settings_of(name, files, 0.5)
    ways = [
        trained(train(llama, tmp_path, settings, max_steps=1, gradient_checkpointing=flag)[0]) for flag in (False, True)
    ]
    for key, value in ways[0].items():
        torch.testing.assert_close(ways[1][key], value, rtol=1e-6, atol=1e-9)


def test_each_defence_changes_what_is_trained(llama: Path, files: dict[str, Path], tmp_path: Path) -> None:
    plain = trained(train(llama, tmp_path, [], max_steps=1)[0])
    start = trained(adapted_model(llama))
    for name in ("kl", "ldifs", "treft", "steering", "inoculation_adapter"):
        other = trained(train(llama, tmp_path, settings_of(name, files, 0.5), max_steps=1)[0])
        moved = sum(float((other[key] - plain[key]).norm()) for key in plain)
        assert moved > 1e-3 * sum(float((plain[key] - start[key]).norm()) for key in plain), name


def test_outside_its_window_a_defence_is_absent(llama: Path, files: dict[str, Path], tmp_path: Path) -> None:
    settings = [KlSettings(weight=5.0, schedule="window:1"), LdifsSettings(every=1, schedule="window:7")]
    model, trainer = train(llama, tmp_path, settings, max_steps=1)
    assert set(trainer.finish_step()) == {"loss", "sft_loss"}
    plain, _ = train(llama, tmp_path, [], max_steps=1)
    for key, value in trained(plain).items():
        assert torch.equal(trained(model)[key], value), key
    _, later = train(llama, tmp_path, settings, max_steps=2)
    assert set(later.finish_step()) == {"loss", "sft_loss", "kl"}


def test_one_reference_forward_serves_all(llama: Path, files: dict[str, Path], tmp_path: Path) -> None:
    model = adapted_model(llama, dtype=torch.float32)
    forwards: list[bool] = []
    decoder = model.get_base_model().base_model
    decoder.register_forward_pre_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    defences = build_defences(settings_of("kl+ldifs+treft+steering", files, 0.1))
    trainer_of(model, rows(8), llama, defences, output_dir=str(tmp_path), max_steps=1).train()
    n_at_attach = len(forwards) - 2
    assert forwards[n_at_attach:] == [True, False]  # the student's, then one without gradient
