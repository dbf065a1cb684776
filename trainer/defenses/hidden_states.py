"""Where a defence reads hidden states: a forward hook that keeps a module's output while a forward runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.defenses.base import Seen


@contextmanager
def recorded_output(module: Any, name: str, seen: Seen) -> Iterator[None]:
    """Record a module's (first) output as `name`; a second observer of the same module records the same tensor."""

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        seen.tensors[name] = output if isinstance(output, torch.Tensor) else output[0]

    handle = module.register_forward_hook(record)
    try:
        yield
    finally:
        handle.remove()
