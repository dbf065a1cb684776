"""theta_0 for full fine-tuning: a second, frozen copy of the weights, put in place while it is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
