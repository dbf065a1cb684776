"""The reference pass: theta_0 is the same network with its adapter switched off, so there is no second copy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.defenses.base import Batch, causal_lm


@contextmanager
def reference_state(model: Any) -> Iterator[None]:
    """Adapters and dropout off and no gradient inside the block; every module's mode as it was after it.

    `model.train()` afterwards would also wake modules that were frozen on purpose, so modes are restored one
    by one.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        for module in training:
            module.training = True


def run_decoder(model: Any, batch: Batch) -> None:
    """One forward of the decoder without its head: hooks record what they want of it."""
    decoder = causal_lm(model).base_model
    decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
