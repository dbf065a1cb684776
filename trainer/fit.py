"""From prepared rows and a configuration to a trained adapter."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from curator.errors import BadInputError
from curator.progress import Progress
from curator.render import Renderer
from trainer.batches import Collator, OrderCheck
from trainer.callbacks import StepLog, StopRequest
from trainer.config import TrainConfig
from trainer.data import PreparedRows
from trainer.defenses import build_defences
from trainer.defenses.base import Defence
from trainer.loop import BallastTrainer, sft_config
from trainer.modelling import add_lora, load_for_training


@dataclass(frozen=True)
class Fitted:
    """An adapted model after training, its defences and the lines of metrics.jsonl."""

    model: Any
    defences: Sequence[Defence]
    lines: list[dict[str, Any]]
    stopped: bool


@dataclass(frozen=True)
class Ready:
    """A model with its adapter and attached defences, and what "auto" turned out to be."""

    model: Any
    defences: Sequence[Defence]
    resolved: dict[str, Any]


def planned_steps(config: TrainConfig, n_rows: int) -> int:
    """Optimiser steps of a run; the last step of an epoch may be smaller."""
    per_epoch = math.ceil(math.ceil(n_rows / config.batch_size) / config.grad_accum)
    return min(config.epochs * per_epoch, config.max_steps or math.inf)  # type: ignore[return-value]


def load(config: TrainConfig) -> Ready:
    """The model with a fresh adapter; raises BadInputError when targets or defences do not fit it."""
    with _quiet():
        model = add_lora(load_for_training(config), config.lora, config.seed)
        defences = build_defences(config.defences)
        for defence in defences:
            defence.attach(model)
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    base = next(p for p in model.parameters() if not p.requires_grad)
    resolved = {
        "dtype": str(base.dtype).removeprefix("torch."),
        "device": base.device.type,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_trained_parameters": n_trained,
    }
    return Ready(model, defences, resolved)


def fit(ready: Ready, prepared: PreparedRows, renderer: Renderer, config: TrainConfig, metrics: Path) -> Fitted:
    """Train; one line of metrics for each step. Ctrl-C ends it after the step at hand (`stopped`).

    Raises IntegrityError when the rows' order is not kept, DivergedError when the loss is no number.
    """
    n_steps = planned_steps(config, len(prepared.input_ids))
    stop = StopRequest()
    with _quiet(), Progress(n_steps, "steps", "training") as progress, stop.listening():
        log = StepLog(metrics, progress, stop)
        trainer = _trainer(ready, prepared, renderer.pad_id, config, n_steps, log)
        log.trainer = trainer
        try:
            trainer.train()
        except KeyboardInterrupt:
            stop.asked = True
    finished = len(log.lines) == n_steps
    return Fitted(ready.model, ready.defences, log.lines, stop.asked and not finished)


def _trainer(
    ready: Ready, prepared: PreparedRows, pad_id: int, config: TrainConfig, n_steps: int, log: StepLog
) -> BallastTrainer:
    if torch.cuda.is_available() and config.device != "cpu" and torch.cuda.device_count() > 1:
        raise BadInputError("several GPUs are visible: set CUDA_VISIBLE_DEVICES to the one to train on")
    options = sft_config(
        str(metrics_folder(log.path)),
        max_steps=n_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accum,
        learning_rate=config.lr,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
        use_cpu=config.device == "cpu",
    )
    trainer = BallastTrainer(
        model=ready.model,
        args=options,
        train_dataset=prepared.dataset(),
        processing_class=transformers.AutoTokenizer.from_pretrained(config.model, local_files_only=True),
        data_collator=Collator(pad_id),
        callbacks=[log],
        defences=ready.defences,
        order=OrderCheck(len(prepared.input_ids)),
    )
    prepared.check_dataset(trainer.train_dataset)
    return trainer


def metrics_folder(metrics: Path) -> Path:
    """The run folder; TRL wants one, though we save nothing through it."""
    return metrics.parent


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries say nothing below an error, and draw no bars of their own."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("accelerate", "trl", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        yield
