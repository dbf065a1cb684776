"""What a defence is: hooks around one training loss, and a term that is added to it.

For each micro-batch the trainer runs one student forward (the SFT loss is TRL's own), and, when any defence
asks for it, one reference forward that all of them share: same network, adapters off, dropout off, no
`intervene`, no gradient. What a defence wants to see of either it records into `Seen` through hooks.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

FINAL_HIDDEN = "final_hidden"  # the decoder's last hidden state, after its final norm: (B, T, D)


@dataclass(frozen=True)
class StepCounts:
    """What terms are divided by: counts over all micro-batches (and processes) of one optimiser step."""

    n_response: int  # response tokens that have a logit
    n_predicted: int  # real tokens that have a logit: every one but each row's first
    n_rows: int


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Rows are padded on the right; labels are -100 outside the response mask."""

    input_ids: torch.Tensor  # (B, T)
    labels: torch.Tensor  # (B, T)
    attention_mask: torch.Tensor  # (B, T)
    counts: StepCounts
    step: int  # optimiser steps finished so far


@dataclass
class Seen:
    """Activations that hooks recorded during one forward, by name; several defences may share an entry."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class Defence:
    """One defence. Subclasses override what they need; the defaults do nothing.

    `weight` multiplies the term in the loss. The trainer logs the term itself, unweighted, under `name`, so
    that a step's loss = SFT loss + the sum of weight * term.
    """

    name: ClassVar[str]
    needs_reference: ClassVar[bool] = True

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def attach(self, model: Any) -> None:
        """Find the modules that hooks will sit on, once, in the adapted model (a PeftModel).

        Raises BadInputError when the model lacks what the defence needs.
        """

    def observe(self, seen: Seen) -> AbstractContextManager[None]:
        """Hooks that record activations of one forward into `seen`; used for student and reference alike."""
        return nullcontext()

    def intervene(self) -> AbstractContextManager[None]:
        """Hooks that change the student's training forward; never active anywhere else."""
        return nullcontext()

    def term(self, student: Seen, reference: Seen, batch: Batch) -> torch.Tensor | None:
        """This micro-batch's share of the term: a scalar, already divided by a count of the whole step.

        Shares add up over the micro-batches of a step. None for defences without a term.
        """
        return None

    def save(self, folder: Path) -> list[str]:
        """Write what the defence trained beside the adapter; returns the file names."""
        return []


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PeftModel (or the model itself)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def recorded_output(module: Any, name: str, seen: Seen) -> Iterator[None]:
    """Record a module's first output as `name`; a second observer of the same module records the same tensor."""

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        seen.tensors[name] = output[0]

    handle = module.register_forward_hook(record)
    try:
        yield
    finally:
        handle.remove()
