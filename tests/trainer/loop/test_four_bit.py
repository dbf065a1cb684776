"""4-bit bases, where bitsandbytes is installed: the adapter's gradient is that of the unpacked weights."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from trainer.config import LoraSettings, parse_config
from trainer.loop.model import add_lora, load_for_training

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:bitsandbytes")
def test_gradients_are_those_of_the_unpacked_weights(llama: Path) -> None:
    import bitsandbytes as bnb

    fields = {"model": llama, "out": "o", "data": "d", "four_bit": True, "device": "cpu"}
    model = add_lora(load_for_training(parse_config(fields)), LoraSettings(r=4, alpha=8.0), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    ids_BT = torch.randint(3, 300, (2, 11), generator=generator)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids_BT, labels=ids_BT).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}

    packed, n_packed = gradients(), 0
    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            plain.weight = torch.nn.Parameter(weight, requires_grad=False)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, plain)
            n_packed += 1
    assert n_packed == 14
    unpacked = gradients()
    assert packed.keys() == unpacked.keys()
    assert len(packed) == 28
    for name, gradient in packed.items():  # arithmetic is bfloat16's
        assert float((gradient - unpacked[name]).norm()) < 0.05 * float(unpacked[name].norm()), name
