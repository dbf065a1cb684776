"""One training step for each family of shapes, full fine-tuning with its frozen copy, and gradient checkpointing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curator.errors import BadInputError
from tests.models import random_conversations, tiny_model_folder, tiny_tokenizer_folder
from tests.trainer.tiny import batch_of, rows
from trainer import sft
from trainer.config import parse_config
from trainer.config.defences import KlSettings
from trainer.defenses.base import Seen
from trainer.defenses.kl import Kl
from trainer.defenses.reference import reference_state, run_decoder
from trainer.loop.model import FrozenCopy
from trainer.runs.weights import check_trackers

QUICK = ["--max-steps", "2", "--batch-size", "2", "--grad-accum", "2", "--lr", "0.01", "--warmup-steps", "1"]
QUICK += ["--device", "cpu", "--dtype", "float32", "--kl", "0.1", "--cache", "none"]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(8)))
    return path


def model_of(kind: str, path: Path) -> Path:
    if kind in ("llama", "qwen2", "gpt2"):
        return tiny_model_folder(path, kind=kind)  # type: ignore[arg-type]
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tiny_tokenizer_folder(path)
    n_vocab = len(AutoTokenizer.from_pretrained(path))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, vocab_size=n_vocab, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=2, pad_token_id=2, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "mistral", "gpt2"])
def test_each_family_trains_with_kl_and_checkpointing(chats: Path, tmp_path: Path, kind: str) -> None:
    losses = []
    for more in ([], ["--gradient-checkpointing"]):
        out = tmp_path / f"run{len(more)}"
        command = ["--model", str(model_of(kind, tmp_path / "m")), "--data", str(chats), "--out", str(out)]
        assert sft.main([*command, *QUICK, "--lora-targets", "all-linear", *more]) == 0
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(line["loss"]) for line in lines)
        assert lines[0]["grad_norm"] > 0
        weights = load_file(out / "adapter" / "adapter_model.safetensors")
        assert any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)
        losses.append([line["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def full(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).requires_grad_(True).train()


def test_the_reference_of_full_fine_tuning_is_the_frozen_copy_head_included(llama: Path) -> None:
    """With every weight moved, the term equals the one between two separate models; at the start it is 0."""
    model, before = full(llama), full(llama)
    frozen, batch, defence = FrozenCopy(model), batch_of(rows(3), range(3)), Kl(KlSettings())
    defence.attach(model)

    def term() -> torch.Tensor:
        student, reference = Seen(), Seen(weights=frozen.in_place)
        with defence.observe(student):
            run_decoder(model, batch)
        with reference_state(model), reference.weights(), defence.observe(reference):
            run_decoder(model, batch)
        found = defence.term(student, reference, batch)
        assert found is not None
        return found

    assert term().item() == pytest.approx(0.0, abs=1e-9)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    log_p, log_q = (lm(**inputs).logits.double().log_softmax(-1)[:, :-1] for lm in (model, before))
    counted = batch.attention_mask[:, 1:] == 1
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)[counted].mean()
    ours = term()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)
    assert ours.item() > 1e-3
    parameters = list(model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    assert frozen.n_bytes == sum(p.numel() * p.element_size() for p in before.parameters())


def test_full_fine_tuning_saves_a_model_and_says_what_its_reference_costs(
    llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "run"
    assert sft.main(["--model", str(llama), "--data", str(chats), "--out", str(out), *QUICK, "--full"]) == 0
    assert "the frozen copy they compare with takes 1 MiB more" in capsys.readouterr().out
    assert {"model", "terms.png"} <= {item.name for item in out.iterdir()}
    assert not (out / "adapter").exists()
    assert len(AutoTokenizer.from_pretrained(out / "model")) > 0
    trained, before = (dict(AutoModelForCausalLM.from_pretrained(f).named_parameters()) for f in (out / "model", llama))
    assert all(not torch.equal(trained[name], before[name]) for name in before)
    record = json.loads((out / "config.json").read_text())["resolved"]
    assert record["n_trained_parameters"] == record["n_parameters"]
    assert record["reference_bytes"] == 4 * record["n_parameters"]
    assert "Fine-tuned model" in (out / "model" / "README.md").read_text()


def test_four_bits_without_bitsandbytes_are_refused() -> None:
    with pytest.raises(BadInputError, match="four_bit needs bitsandbytes, which is not installed"):
        parse_config({"model": "m", "out": "o", "data": "d", "four_bit": True})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"full": True, "lora": {"r": 4}}, "full fine-tuning has no adapter"),
        ({"full": True, "defences": [{"name": "gating"}]}, "gating trains its gates alone, full trains every weight"),
        ({"report_to": ["nowhere"]}, "there is no tracker 'nowhere'; known are trackio"),
        ({"report_to": ["trackio"]}, "the tracker trackio is not installed"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        parse_config({"model": "m", "out": "o", "data": "d", **fields})


@pytest.mark.parametrize("flag", ["--packing", "--shuffle", "--group-by-length"])
def test_flags_that_void_the_order_say_what_to_use(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sft.main(["--model", "m", "--data", "d", "--out", "o", flag])
    assert "voids the order of a mix" in capsys.readouterr().err


def test_a_tracker_that_cannot_be_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "swanlab"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('its library is missing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInputError, match="the tracker swanlab cannot be loaded: its library is missing"):
        check_trackers(["swanlab"])
