"""The reference pass: theta_0 is the same network with its adapter switched off, so LoRA needs no second copy.

Under full fine-tuning there is one, `trainer.loop.model.FrozenCopy`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from trainer.defenses.base import Batch, causal_lm


@contextmanager
def reference_state(model: Any) -> Iterator[None]:
    """Adapters and dropout off and no gradient inside the block; modes and frozen parameters as before after it.

    `model.train()` afterwards would also wake modules that were frozen on purpose, so modes are restored one
    by one.
    """
    training = [module for module in model.modules() if module.training]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for module in training:
        module.training = False
    try:
        # Without an adapter (full fine-tuning) the caller puts theta_0's weights in place.
        with torch.no_grad(), model.disable_adapter() if hasattr(model, "peft_config") else nullcontext():
            yield
    finally:
        for module in training:
            module.training = True
        for parameter in frozen:  # PEFT makes its adapters trainable when it switches them on again
            parameter.requires_grad_(False)


def run_decoder(model: Any, batch: Batch, n_tokens: int | None = None) -> None:
    """One forward of the decoder without its head, on the rows' first tokens: hooks record what they want of it."""
    decoder = causal_lm(model).base_model
    ids_BT, mask_BT = batch.input_ids[:, :n_tokens], batch.attention_mask[:, :n_tokens]
    decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
