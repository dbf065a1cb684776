"""The trained model: a folder loaded for training, with a LoRA adapter on projections found by name or trained in full.

`FrozenCopy` is the reference model of full fine-tuning: a second copy of the weights, in place while it computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from curator.errors import BadInputError
from curator.scoring.engines.torch_model import (
    load_checked,
    load_model,
    make_savable,
    resolve_device,
    resolve_dtype,
    with_adapter,
)
from trainer.config import ALL_LINEAR, LoraSettings, TrainConfig
from trainer.runs.weights import lora_config


def load_for_training(config: TrainConfig) -> Any:
    """The aligned model of the configuration's folder, on its device, weights frozen."""
    device = resolve_device(config.device)
    if config.four_bit:
        return _load_four_bit(config.model, device)
    return load_model(config.model, device, resolve_dtype(config.dtype, device))


def _load_four_bit(folder: Path, device: str) -> Any:
    """NF4 weights with bfloat16 arithmetic, as bitsandbytes packs them; the adapter is trained on top."""
    packed = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = load_checked(folder, "sdpa", quantization_config=packed, device_map={"": device})
    return model.requires_grad_(False)


def add_lora(model: Any, settings: LoraSettings, seed: int) -> PeftModel:
    """`model` with a fresh adapter named "default" (B = 0, A drawn from `seed`); only the adapter is trained.

    Adapter weights are float32 when the model's are narrower, so that small updates are not rounded away.
    """
    targets = find_targets(model, settings.targets)
    transformers.set_seed(seed)
    lora = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    return get_peft_model(model, lora)


def continue_lora(model: Any, folder: Path, seed: int) -> PeftModel:
    """`model` with a saved adapter to train further; raises BadInputError for one that is not LoRA or does not fit."""
    lora_config(folder)
    transformers.set_seed(seed)
    adapted: PeftModel = with_adapter(model, folder, trainable=True)
    return adapted


def prepare_full(model: Any, seed: int) -> Any:
    """`model` with every weight trained; `seed` decides the dropout. Raises BadInputError when it could not be saved.

    Trainers switch the cache off and put the tokenizer's ends of text into the settings: the model is saved with those
    that it has now.
    """
    make_savable(model)
    model.settings_to_save = deepcopy((model.config, model.generation_config))
    transformers.set_seed(seed)
    return model.requires_grad_(True).train()


def find_targets(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """The module names to adapt; raises BadInputError that lists what the model has when one is not there.

    `all-linear` stands for every linear layer but the head.
    """
    found = linear_names(model)
    if wanted == (ALL_LINEAR,):
        return found
    missing = [name for name in wanted if name not in found]
    if missing:
        raise BadInputError(
            f"this model has no layers named {', '.join(missing)}; it has {', '.join(found)}: "
            f"choose among them with --lora-targets, or take all with --lora-targets {ALL_LINEAR}",
            details=found,
        )
    return list(wanted)


def linear_names(model: Any) -> list[str]:
    """Sorted last name parts of the model's linear layers, without the output head."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D") and module is not head
        }
    )


def save_model(model: Any, folder: Path) -> None:
    """What was trained, as safetensors: an adapter in PEFT's own form, or the whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        # Without this PEFT looks whether the base's vocabulary changed, on the network if need be.
        model.save_pretrained(folder, save_embedding_layers=False)
        return
    in_training = model.config, model.generation_config
    model.config, model.generation_config = deepcopy(model.settings_to_save)
    try:
        model.save_pretrained(folder)
    finally:
        model.config, model.generation_config = in_training


class FrozenCopy:
    """The weights of a model as they were when this was made.

    Modules, and the hooks on them, stay the model's own; inside `in_place` they compute with the copy.
    """

    def __init__(self, model: Any) -> None:
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]

    @property
    def n_bytes(self) -> int:
        """Memory that the copy holds."""
        return sum(copy.numel() * copy.element_size() for _, copy in self._pairs)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the frozen weights inside the block; nothing is copied, and gradients are off."""
        trained = [parameter.data for parameter, _ in self._pairs]
        for parameter, copy in self._pairs:
            parameter.data = copy
        try:
            with torch.no_grad():
                yield
        finally:
            for (parameter, _), data in zip(self._pairs, trained, strict=True):
                parameter.data = data
