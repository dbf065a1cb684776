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

from curator.render import (
    OTHER,
    POSTFIX,
    PREFIX,
    QUERY,
)
from trainer.config import LoraSettings
from trainer.data.rows import CLASSES, SAFE
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
from trainer.experiments.toy.settings import Strict
from trainer.experiments.toy.world import PAD, QUESTION_LEN
from trainer.loop.model import add_lora

IGNORED = -100  # label of a token without loss


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
    model = add_lora(base, settings.lora, seed)
    try:
        yield _train(model, rows, safe, settings, build_defences(defences))
    finally:
        model.unload()


def _train(
    model: Any, rows: torch.Tensor, safe: torch.Tensor, settings: FineTuneSettings, defences: Sequence[Defence]
) -> Tuned:
    for defence in defences:
        defence.attach(model)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    n_steps = -(-len(rows) // settings.batch_size)
    started, losses = time.process_time(), []
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _factor(step, n_steps, settings.warmup_steps)
        part = slice(step * settings.batch_size, (step + 1) * settings.batch_size)
        optimizer.zero_grad(set_to_none=True)
        batch = _batch(rows[part], safe[part], step, n_steps)
        with ExitStack() as interventions:
            for defence in defences:
                interventions.enter_context(defence.intervene(batch))
            sft_loss, terms = _losses(model, batch, defences)
            (sft_loss + terms).backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        losses.append(sft_loss.item())
    model.eval()
    last = losses[-max(1, n_steps // 10) :]
    return Tuned(model, len(rows), n_steps, time.process_time() - started, sum(last) / len(last))


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
