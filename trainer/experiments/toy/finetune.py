"""Fine-tuning of a toy model by the recipe (method.md, "Training recipe"), smaller: rsLoRA through PEFT on every
projection, AdamW, a rate that falls linearly after a few warm-up steps, rows in the order given, loss on answers.

Defences are the trainer's own (trainer.defenses). The loop is plain because a step takes a few milliseconds here.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from curator.recipe.base import Strict
from curator.render import (
    OTHER,
    POSTFIX,
    PREFIX,
    QUERY,
)
from trainer.config import LoraSettings
from trainer.data.rows import CLASSES, IGNORED, SAFE
from trainer.defenses import DefenceSettings, build_defences
from trainer.defenses.base import (
    Batch,
    Defence,
    Seen,
    StepCounts,
    without_interventions,
)
from trainer.defenses.reference import reference_state, run_decoder
from trainer.experiments.toy.model import answer_loss
from trainer.experiments.toy.world import PAD, QUESTION_LEN
from trainer.loop.model import add_lora


class FineTuneSettings(Strict):
    """The recipe; one epoch over the rows, `batch_size` rows a step."""

    lora: LoraSettings = LoraSettings(r=8, alpha=32.0)
    lr: float = Field(default=5e-4, gt=0)
    warmup_steps: int = Field(default=5, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, ge=1)


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned toy model (a PeftModel) and what it cost."""

    model: Any
    n_rows: int
    n_steps: int
    cpu_s: float
    final_loss: float  # mean of the last tenth of the steps, nats per answer, without the terms of defences

    def cost(self) -> dict[str, float]:
        """Counts, CPU seconds and the final loss, for a result file."""
        return {
            "n_rows": self.n_rows, "n_steps": self.n_steps, "cpu_s": self.cpu_s, "final_loss": self.final_loss,
        }  # fmt: skip


@contextmanager
def fine_tuned(
    base: Any,
    rows: torch.Tensor,
    safe: torch.Tensor,
    settings: FineTuneSettings,
    *,
    defences: Sequence[DefenceSettings] = (),
    seed: int = 0,
) -> Iterator[Tuned]:
    """Train an adapter on rows (N, T), padded at their end, in their order, with the loss on each row's last answer;
    `safe` (N,) marks those of a pool. On leaving the block the base is as it was, without the adapter."""
    n_steps = -(-len(rows) // settings.batch_size)
    with step_by_step(base, settings, n_steps, defences=defences, seed=seed) as run:
        for part in zip(rows.split(settings.batch_size), safe.split(settings.batch_size), strict=True):
            run.step(*part)
        yield run.finished()


@contextmanager
def step_by_step(
    base: Any, settings: FineTuneSettings, n_steps: int, *, defences: Sequence[DefenceSettings] = (), seed: int = 0
) -> Iterator["FineTune"]:
    """The same for a caller who gives each step its rows, and may look at the model in between."""
    model = add_lora(base, settings.lora, seed)
    try:
        yield FineTune(model, settings, n_steps, build_defences(defences))
    finally:
        model.unload()


class FineTune:
    """A fine-tune at work. `losses` has that of each step so far, in nats per answer, without the defences' terms."""

    def __init__(self, model: Any, settings: FineTuneSettings, n_steps: int, defences: Sequence[Defence]) -> None:
        for defence in defences:
            defence.attach(model)
        self.model, self.settings, self.n_steps, self._defences = model.train(), settings, n_steps, defences
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=settings.lr, weight_decay=settings.weight_decay)
        self._started, self._n_rows = time.process_time(), 0
        self.losses: list[float] = []

    def step(self, rows: torch.Tensor, safe: torch.Tensor) -> None:
        """One optimiser step on these rows."""
        step = len(self.losses)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.lr * _factor(step, self.n_steps, self.settings.warmup_steps)
        self._optimizer.zero_grad(set_to_none=True)
        batch = _batch(rows, safe, step, self.n_steps)
        with ExitStack() as interventions:
            for defence in self._defences:
                interventions.enter_context(defence.intervene(batch))
            sft_loss, terms = _losses(self.model, batch, self._defences)
            (sft_loss + terms).backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self.settings.max_grad_norm)
        self._optimizer.step()
        self.losses.append(sft_loss.item())
        self._n_rows += len(rows)

    def weights(self) -> list[torch.Tensor]:
        """A copy of what is trained, as it is now."""
        return [parameter.detach().clone() for parameter in self._trained]

    def put_back(self, weights: Sequence[torch.Tensor]) -> None:
        """What is trained as it was when `weights` were copied."""
        for parameter, before in zip(self._trained, weights, strict=True):
            parameter.data.copy_(before)

    def finished(self) -> Tuned:
        """The model in the mode in which it is measured, and what it cost."""
        last = self.losses[-max(1, self.n_steps // 10) :]
        cpu_s = time.process_time() - self._started
        return Tuned(self.model.eval(), self._n_rows, len(self.losses), cpu_s, sum(last) / len(last))


def _factor(step: int, n_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then linearly down to nothing."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (n_steps - step) / max(1, n_steps - warmup_steps)


def _batch(rows: torch.Tensor, safe: torch.Tensor, step: int, n_steps: int) -> Batch:
    real = rows != PAD
    from_end = real.sum(1, keepdim=True) - 1 - torch.arange(rows.shape[1])  # 0 at the answer
    labels = torch.where(from_end == 0, rows, IGNORED)
    classes = torch.full_like(rows, PREFIX)  # the start token and earlier turns: the template before the question
    for kind, where in ((QUERY, from_end < QUESTION_LEN), (POSTFIX, from_end == 1), (OTHER, from_end <= 0)):
        classes[where] = kind
    mask = real.long()
    counts = StepCounts.of([{"labels": labels, "attention_mask": mask, SAFE: safe, CLASSES: classes}])
    return Batch(rows, labels, mask, counts, step, n_steps, torch.arange(len(rows)), safe, classes)


def _losses(model: Any, batch: Batch, defences: Sequence[Defence]) -> tuple[torch.Tensor, torch.Tensor | float]:
    """The loss on answers (nats per answer), and the weighted terms of the defences."""
    student, reference = Seen(), Seen()
    with ExitStack() as hooks:
        for defence in defences:
            hooks.enter_context(defence.observe(student))
        sft_loss = answer_loss(model, batch.input_ids)
    if any(defence.needs_reference for defence in defences):
        with ExitStack() as hooks:
            hooks.enter_context(reference_state(model))
            hooks.enter_context(without_interventions(defences))
            for defence in defences:
                hooks.enter_context(defence.observe(reference))
            run_decoder(model, batch)
    found = [(defence, defence.term(student, reference, batch)) for defence in defences]
    return sft_loss, sum(defence.weight_at(batch) * term for defence, term in found if term is not None)
