"""The interface of a defence: hooks around one training loss, and a term that is added to it.

For each micro-batch the trainer runs one student forward (the SFT loss is TRL's own), and, when any defence needs it,
one reference forward that all of them share: the same network without adapters, dropout, `intervene` and gradient. A
defence records what it needs of either into `Seen` through hooks. Terms are divided by counts over the whole optimiser
step (`StepCounts`), so that accumulation changes nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from curator.errors import BadInputError
from curator.render import POSTFIX, PREFIX, QUERY
from trainer.config.defences import Schedule
from trainer.data.rows import CLASSES, IGNORED, SAFE

FINAL_HIDDEN = "final_hidden"  # the decoder's last hidden state, after its final norm: (B, T, D)


@dataclass(frozen=True)
class StepCounts:
    """Counts over all micro-batches (and processes) of one optimiser step."""

    n_response: int  # response tokens that have a logit
    n_predicted: int  # real tokens that have a logit: every one but each row's first
    n_rows: int
    n_safe_response: int = 0  # the same two, in rows of a safe pool
    n_safe_predicted: int = 0
    n_prefix: int = 0  # tokens by class; 0 where classes were not requested
    n_query: int = 0
    n_postfix: int = 0

    @property
    def n_tokens(self) -> int:
        """Real tokens, each row's first one included."""
        return self.n_predicted + self.n_rows

    @classmethod
    def of(cls, batches: Sequence[Mapping[str, Any]]) -> Self:
        """The counts of one process's micro-batches (the collator's tensors)."""
        totals = [0] * 8
        for batch in batches:
            response_BT, predicted_BT = batch["labels"][:, 1:] != IGNORED, batch["attention_mask"][:, 1:] != 0
            safe_B = batch[SAFE] if SAFE in batch else batch["labels"].new_zeros(len(response_BT), dtype=bool)
            found = [response_BT.sum(), predicted_BT.sum(), len(response_BT)]
            found += [response_BT[safe_B].sum(), predicted_BT[safe_B].sum()]
            classes = (
                [(batch[CLASSES] == kind).sum() for kind in (PREFIX, QUERY, POSTFIX)] if CLASSES in batch else [0] * 3
            )
            totals = [total + int(n) for total, n in zip(totals, found + classes, strict=True)]
        return cls(*totals)


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Rows are padded on the right; labels are -100 outside the response mask.

    `rows` are positions in the mix or file, `safe` tells rows of a safe pool; `classes` (curator.render.mask)
    are there when a defence's settings ask for them.
    """

    input_ids: torch.Tensor  # (B, T)
    labels: torch.Tensor  # (B, T)
    attention_mask: torch.Tensor  # (B, T)
    counts: StepCounts
    step: int  # optimiser steps finished so far
    n_steps: int = 0  # optimiser steps of the whole run
    rows: torch.Tensor | None = None  # (B,)
    safe: torch.Tensor | None = None  # (B,) bool
    classes: torch.Tensor | None = None  # (B, T)

    @property
    def real(self) -> torch.Tensor:
        """Tokens of the rows, (B, T) bool: no padding, and no row that only fills up a batch (position -1)."""
        real_BT = self.attention_mask != 0
        return real_BT if self.rows is None else real_BT & (self.rows >= 0)[:, None]


@dataclass
class Seen:
    """Activations that hooks recorded during one forward, by name; several defences may share an entry.

    Inside `weights()` the model computes with the weights of that forward: those of theta_0 for the reference under
    full fine-tuning, and its own everywhere else (what is adapted lies below the head).
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: Callable[[], AbstractContextManager[None]] = nullcontext

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class Defence:
    """One defence. Subclasses override what they need; the defaults do nothing.

    `weight` times the schedule's factor multiplies the term in the loss. The trainer logs the term itself,
    unweighted, under `name`, so that a step's loss = SFT loss + the sum of weight * factor * term.
    """

    name: ClassVar[str]
    needs_reference: ClassVar[bool] = True

    def __init__(self, weight: float, schedule: Schedule | None = None) -> None:
        self.weight = weight
        self.schedule = schedule or Schedule()
        self.paused = False  # set around the reference forward: interventions stay out of it

    def attach(self, model: Any) -> None:
        """Find the modules that hooks will sit on, once, in the adapted model (a PeftModel).

        Raises BadInputError when the model lacks what the defence needs.
        """

    def active(self, batch: Batch) -> bool:
        """False outside a schedule's step window: no hooks, no term, no reference forward for this defence."""
        return self.schedule.active(batch.step, batch.n_steps)

    def weight_at(self, batch: Batch) -> float:
        """The weight of this step."""
        return self.weight * self.schedule.factor(batch.step, batch.n_steps)

    def observe(self, seen: Seen) -> AbstractContextManager[None]:
        """Hooks that record activations of one forward into `seen`; used for student and reference alike."""
        return nullcontext()

    def intervene(self, batch: Batch) -> AbstractContextManager[None]:
        """Hooks that change the student's training forward on `batch`; never active anywhere else.

        They stay until the backward pass is over, because checkpointed blocks run their forward again there, and
        must do nothing while `paused`.
        """
        return nullcontext()

    def reference_length(self, batch: Batch) -> int:
        """How many leading tokens of the rows the reference forward must cover for this defence."""
        return int(batch.input_ids.shape[1])

    def term(self, student: Seen, reference: Seen, batch: Batch) -> torch.Tensor | None:
        """This micro-batch's share of the term: a scalar, already divided by a count of the whole step.

        Shares add up over the micro-batches of a step. None for defences without a term.
        """
        return None

    def acting(self, term: torch.Tensor) -> torch.Tensor:
        """The term; raises BadInputError when it has no gradient in any trained parameter, and so would do nothing.

        It has none when what is trained lies above what is observed, or when activations are recorded under no-grad
        (as in reentrant checkpointing).
        """
        if torch.is_grad_enabled() and not term.requires_grad:
            raise BadInputError(
                f"{self.name}: no trained parameter reaches what it observes, so it would do nothing: observe higher "
                "layers, or adapt lower ones (and no reentrant gradient checkpointing)"
            )
        return term

    def save(self, folder: Path) -> list[str]:
        """Write what the defence trained beside the adapter; returns the file names."""
        return []

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, after `attach` (to go on from a checkpoint)."""


@contextmanager
def without_interventions(defences: Sequence[Defence]) -> Iterator[None]:
    """Hooks of `intervene` do nothing inside the block."""
    for defence in defences:
        defence.paused = True
    try:
        yield
    finally:
        for defence in defences:
            defence.paused = False


def wide(tensor: torch.Tensor) -> torch.dtype:
    """Terms are computed in float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PeftModel (or the model itself)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


__all__ = [
    "FINAL_HIDDEN",
    "Batch",
    "Defence",
    "Seen",
    "StepCounts",
    "causal_lm",
    "wide",
    "without_interventions",
]
