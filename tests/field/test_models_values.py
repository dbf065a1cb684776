"""Values and settings inside folders and adapters that would make another model of the one that was given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curator.errors import BadInputError
from curator.scoring.engines.torch_model import Adapters, load_model, load_plain, with_adapter
from tests.field.models import changed_adapter, changed_folder
from tests.models import tiny_adapter_folder, tiny_model_folder

IDS_BT = torch.tensor([[5, 9, 40, 41]])
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "base")


def _with_own(base: Path, name: str, change: float) -> Callable[[Tensors], Tensors]:
    """An adapter's tensors, and beside them a weight of the base, as PEFT saves embeddings."""
    weight = load_file(base / "model.safetensors")[name] + change
    return lambda tensors: {**tensors, f"base_model.model.{name}": weight}


@pytest.mark.parametrize("name", [EMBEDDING, NORM, "lm_head.weight"])
def test_an_adapter_that_overwrites_weights_of_the_base_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    """PEFT loads them into the base itself, and switched off they would stay: the base's losses were wrong."""
    adapter = changed_adapter(base, tmp_path / "changed", _with_own(base, name, 1.0))
    with pytest.raises(BadInputError, match=f"holds 1 weights of the base itself .*{name}"):
        Adapters(load_model(base, "cpu", "float32")).use(adapter)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_with_the_base_s_own_values_is_used_and_switched_off(dtype: str, base: Path, tmp_path: Path) -> None:
    adapter = changed_adapter(base, tmp_path / "same", _with_own(base, EMBEDDING, 0.0))
    model = load_model(base, "cpu", dtype)
    before = model(input_ids=IDS_BT).logits
    adapters = Adapters(model)
    adapters.use(adapter)
    assert not torch.equal(model(input_ids=IDS_BT).logits, before)
    adapters.use(None)
    assert torch.equal(model(input_ids=IDS_BT).logits, before)


def test_repeated_layers_cannot_be_switched_off(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "longer")
    with pytest.raises(BadInputError, match="repeats layers of the base"):
        Adapters(load_model(base, "cpu", "float32")).use(tmp_path / "longer")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float, base: Path, tmp_path: Path) -> None:
    def spoil(part: str) -> Callable[[Tensors], Tensors]:
        def change(tensors: Tensors) -> Tensors:
            for name, tensor in tensors.items():
                if part in name:
                    tensor[0, 0] = value
            return tensors

        return change

    folder = changed_folder(base, tmp_path / "model", spoil("layers.1.mlp.up_proj"))
    for load in (lambda: load_model(folder, "cpu", "bfloat16"), lambda: load_plain(folder, None, "cpu", "float32")):
        with pytest.raises(BadInputError, match=r"model folder .* not finite .*model.layers.1.mlp.up_proj.weight"):
            load()
    adapter = changed_adapter(base, tmp_path / "adapter", spoil("layers.0.mlp.up_proj.lora_B"))
    with pytest.raises(BadInputError, match=r"adapter .* not finite .*layers.0.mlp.up_proj.lora_B"):
        with_adapter(load_model(base, "cpu", "float32"), adapter, switchable=False)


@pytest.mark.parametrize("kernel", ["kernels-community/flash-attn", "someone/kernel", "flash_attention_2", "nosuch"])
def test_the_attention_that_a_folder_names_is_not_fetched(kernel: str, base: Path, tmp_path: Path) -> None:
    """transformers takes it from config.json, and loads a kernel of the hub (code) where `kernels` is installed."""
    folder = changed_folder(
        base, tmp_path / "model", config={"attn_implementation": kernel, "_attn_implementation": kernel}
    )
    found = load_model(folder, "cpu", "float32")
    torch.testing.assert_close(
        found(input_ids=IDS_BT).logits, load_model(base, "cpu", "float32")(input_ids=IDS_BT).logits
    )
    adapter = tiny_adapter_folder(base, tmp_path / "adapter")
    with_adapter(found, adapter)
