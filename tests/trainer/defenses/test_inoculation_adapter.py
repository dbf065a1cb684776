"""A frozen adapter that acts while another is trained: what it changes there, and that it is nowhere else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from curator.errors import BadInputError
from curator.scoring.identity import adapter_sha256, weights_sha256
from tests.models import random_conversations
from tests.trainer.proofs import adapter_folder, assert_gradient, attached, lm_loss
from tests.trainer.tiny import adapted_model, batch_of, lora_parameters, rows, trainer_of
from trainer import sft
from trainer.config.defences import InoculationAdapterSettings, KlSettings
from trainer.defenses.base import Batch, without_interventions
from trainer.defenses.kl import Kl
from trainer.defenses.reference import reference_state
from trainer.loop.memory import DecoderShape, Work, defence_bytes
from trainer.loop.model import save_model

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trait(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_folder(llama, tmp_path_factory.mktemp("trait") / "adapter")


def logits(model: Any, batch: Batch) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return found


@pytest.mark.parametrize(("kind", "targets"), [("llama", ("q_proj", "down_proj")), ("gpt2", ("c_attn", "c_fc"))])
def test_a_training_forward_has_both_adapters_as_peft_adds_them(
    kind: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    folder, trait = tmp_path / "model", tmp_path / "trait"
    model = adapted_model(folder, kind=kind, targets=("all-linear",))
    save_model(adapted_model(folder, kind=kind, r=2, targets=targets), trait)
    defence, batch = attached(model, InoculationAdapterSettings(adapter=trait)), batch_of(rows(3), range(3))
    with defence.intervene(batch):
        found = logits(model, batch)
        with reference_state(model), without_interventions([defence]):
            reference = logits(model, batch)
    plain = logits(model, batch)
    with model.disable_adapter():
        assert torch.equal(reference, logits(model, batch))
    model.load_adapter(trait, adapter_name="trait", autocast_adapter_dtype=False)
    model.base_model.set_adapter(["default", "trait"])
    torch.testing.assert_close(found, logits(model, batch), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, plain)


def test_the_gradient_reaches_the_new_adapter_alone(llama: Path, trait: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(3), range(3))
    names = [name for name, _ in model.named_parameters()]
    defence, parameters = (
        attached(model, InoculationAdapterSettings(adapter=trait, scale=0.7)),
        lora_parameters(model),
    )
    assert [name for name, _ in model.named_parameters()] == names
    assert_gradient(lambda: lm_loss(defence, model, batch), parameters)
    lm_loss(defence, model, batch).backward()
    for _, factors in defence._layers:
        for factor in (factors.a_RI, factors.b_OR):
            assert not factor.requires_grad
            assert factor.grad is None
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(parameters)
    inoculated, plain = (
        torch.autograd.grad(lm_loss(item, model, batch), list(parameters.values()))
        for item in (defence, Kl(KlSettings()))
    )
    moved = sum(float((one - other).norm()) for one, other in zip(inoculated, plain, strict=True))
    assert moved > 1e-3 * sum(float(grad.norm()) for grad in plain)


def test_scale_and_schedule_multiply_what_it_adds(llama: Path, trait: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(2), range(2))
    place = model.get_base_model().base_model.layers[0].self_attn.q_proj
    settings = InoculationAdapterSettings(adapter=trait, scale=4.0, schedule="linear:0:10")
    defence, hidden_BTD = attached(model, settings), torch.randn(1, 5, 64, dtype=torch.float64)
    pair = load_file(trait / WEIGHTS)
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    added_BTD = hidden_BTD @ pair[f"{stem}A.weight"].T @ pair[f"{stem}B.weight"].T * 6.0 / 2**0.5  # rsLoRA
    plain_BTD = place(hidden_BTD)
    for step, strength in ((0, 4.0), (5, 2.0), (10, 0.0)):
        at = Batch(batch.input_ids, batch.labels, batch.attention_mask, batch.counts, step, 100)
        with defence.intervene(at):
            torch.testing.assert_close(place(hidden_BTD), plain_BTD + strength * added_BTD)
    assert torch.equal(place(hidden_BTD), plain_BTD)


def test_what_is_saved_is_the_new_adapter_and_loads_alone(llama: Path, trait: Path, tmp_path: Path) -> None:
    model, batch = adapted_model(llama, dtype=torch.float32, random_b=False), batch_of(rows(4), range(4))
    defence = attached(model, InoculationAdapterSettings(adapter=trait))
    trainer_of(model, rows(4), llama, [defence], output_dir=str(tmp_path), max_steps=2).train()
    save_model(model, tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / WEIGHTS)
    assert {name.replace(".weight", ".default.weight") for name in saved} == set(lora_parameters(model))
    assert [item.name for item in (tmp_path / "adapter").iterdir() if item.is_dir()] == []
    fresh = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    alone = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert torch.equal(logits(model.eval(), batch), logits(alone, batch))


def test_the_estimate_of_memory_counts_its_factors(llama: Path, trait: Path) -> None:
    shape, work = DecoderShape.of(llama), Work(2, 20, 5, weight_bytes=2, on_gpu=False, checkpointing=False)
    assert shape is not None
    n_numbers = sum(value.numel() for value in load_file(trait / WEIGHTS).values())
    assert defence_bytes(shape, InoculationAdapterSettings(adapter=trait), work) == 2 * n_numbers > 0


def changed(trait: Path, folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """The adapter with other tensors or settings."""
    shutil.copytree(trait, folder)
    save_file(load_file(trait / WEIGHTS) | tensors, folder / WEIGHTS)
    document = json.loads((trait / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def test_adapters_that_do_not_fit_are_refused(llama: Path, trait: Path, tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    zero = {name: torch.zeros_like(value) for name, value in load_file(trait / WEIGHTS).items() if "lora_B" in name}
    cases = {
        "wide": (changed(trait, tmp_path / "wide", {stem: torch.ones(8, 2)}), "does not fit the model"),
        "more": (changed(trait, tmp_path / "more", {"x.lm_head.weight": torch.ones(2, 2)}), "beside the factors"),
        "idle": (changed(trait, tmp_path / "idle", zero), "changes nothing"),
        "dora": (changed(trait, tmp_path / "dora", {}, use_dora=True), "holds a DoRA adapter"),
        "none": (tmp_path / "none", "lacks adapter_config.json"),
    }
    for folder, message in cases.values():
        with pytest.raises(BadInputError, match=message):
            attached(adapted_model(llama), InoculationAdapterSettings(adapter=folder))


@pytest.fixture
def argv(llama: Path, tmp_path: Path) -> list[str]:
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(4)))
    options = "--lora-r 2 --max-steps 2 --batch-size 2 --grad-accum 1 --device cpu --lr 0.01 --dtype float32"
    return ["--model", str(llama), "--data", str(data), *options.split()]


def test_a_run_records_the_adapters_hash_and_writes_another_one(
    argv: list[str], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sft.main([*argv, "--seed", "1", "--out", str(tmp_path / "first")]) == 0
    trait = tmp_path / "first" / "adapter"
    assert sft.main([*argv, "--out", str(tmp_path / "run"), "--inoculation-adapter", str(trait)]) == 0
    digest = adapter_sha256(trait)
    for name in ("report.json", "adapter/ballast.json"):
        (defence,) = json.loads((tmp_path / "run" / name).read_text())["defences"]
        assert (defence["name"], defence["adapter_sha256"], defence["scale"]) == ("inoculation_adapter", digest, 1.0)
    assert digest in (tmp_path / "run" / "report.md").read_text()
    assert digest in (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert {item.name for item in (tmp_path / "run" / "adapter").iterdir()} == {
        "adapter_config.json", WEIGHTS, "README.md", "ballast.json",
    }  # fmt: skip
    capsys.readouterr()
    moved = shutil.copytree(trait, tmp_path / "moved")  # the same adapter elsewhere is the same run
    assert sft.main([*argv, "--out", str(tmp_path / "run"), "--inoculation-adapter", str(moved)]) == 0
    assert "holds this very run" in capsys.readouterr().out


def test_an_adapter_of_other_weights_is_refused_and_one_that_names_none_warned_of(
    argv: list[str], llama: Path, trait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(trait, tmp_path / "other")
    (other / "ballast.json").write_text(json.dumps({"base_weights_sha256": "f" * 64}))
    run = ["--out", str(tmp_path / "run"), "--inoculation-adapter"]
    assert sft.main([*argv, *run, str(other)]) == 2
    assert "was trained on the model with weights ffffffffffff, this one has" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert sft.main([*argv, *run, str(trait)]) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    (warned,) = [item for item in record["warnings"] if item["code"] == "adapter_of_unknown_model"]
    assert warned["text"].startswith("adapter does not say which weights it was made for: the adapter fits")
    (other / "ballast.json").write_text(json.dumps({"base_weights_sha256": weights_sha256(llama)}))
    assert sft.main([*argv, *run, str(other), "--overwrite"]) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "adapter_of_unknown_model" not in {item["code"] for item in record["warnings"]}
