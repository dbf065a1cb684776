"""From prepared rows and a configuration to a trained adapter."""

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from curator.console import Progress
from curator.errors import BadInputError
from curator.render import Renderer
from curator.scoring.engines.torch_folder import load_tokenizer
from curator.scoring.engines.torch_model import resolve_device, resolve_dtype
from trainer.config import TrainConfig
from trainer.data.collate import Collator
from trainer.data.order import OnceCheck, OrderCheck
from trainer.data.rows import PreparedRows
from trainer.defenses import build_defences
from trainer.defenses.base import Defence
from trainer.loop.callbacks import StepLog, StopRequest
from trainer.loop.forecast import Forecast, forecast
from trainer.loop.model import (
    FrozenCopy,
    add_lora,
    continue_lora,
    load_for_training,
    prepare_full,
)
from trainer.loop.reserve import Reserve
from trainer.loop.trainer import BallastTrainer, sft_config
from trainer.runs.checkpoints import FOLDER, Checkpoint


@dataclass(frozen=True)
class Fitted:
    """An adapted model after training, its defences and the lines of metrics.jsonl."""

    model: Any
    defences: Sequence[Defence]
    lines: list[dict[str, Any]]
    stopped: bool


@dataclass(frozen=True)
class Ready:
    """A model with its adapter and attached defences, and what "auto" turned out to be.

    `watch` makes the monitor's callback from the number of steps and the log, before the first step.
    """

    model: Any
    defences: Sequence[Defence]
    resolved: dict[str, Any]
    frozen: FrozenCopy | None = None
    watch: Callable[[int, StepLog], transformers.TrainerCallback] | None = None


def planned_steps(config: TrainConfig, n_rows: int, n_processes: int = 1) -> int:
    """Optimiser steps of a run; the last step of an epoch may be smaller."""
    per_epoch = math.ceil(math.ceil(n_rows / (config.batch_size * n_processes)) / config.grad_accum)
    return min(config.epochs * per_epoch, config.max_steps or math.inf)  # type: ignore[return-value]


def planned(config: TrainConfig, n_rows: int, n_processes: int) -> dict[str, int]:
    """Optimiser steps, processes, and rows in a step of all of them."""
    return {
        "steps": planned_steps(config, n_rows, n_processes),
        "processes": n_processes,
        "effective_batch": config.batch_size * config.grad_accum * n_processes,
    }


def foresee(config: TrainConfig, prepared: PreparedRows) -> Forecast:
    """What the run needs on the device that it will train on, and whether gradient checkpointing is on."""
    device = resolve_device(config.device)
    return forecast(config, prepared, device, resolve_dtype(config.dtype, device))


def load(config: TrainConfig) -> Ready:
    """The model, with a fresh adapter unless it is trained in full; raises BadInputError when targets or defences do
    not fit it."""
    with quiet():
        base = load_for_training(config)
        dtype, device = base.dtype, base.device.type
        model = _trained_model(base, config)
        defences = build_defences(config.defences)
        frozen = FrozenCopy(model) if config.full and any(item.needs_reference for item in defences) else None
        for defence in defences:
            defence.attach(model)
    resolved = {
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "reference_bytes": frozen.n_bytes if frozen else 0,
    }
    return Ready(model, defences, resolved, frozen)


def _trained_model(base: Any, config: TrainConfig) -> Any:
    if config.full:
        return prepare_full(base, config.seed)
    if config.start_adapter is not None:
        return continue_lora(base, config.start_adapter, config.seed)
    return add_lora(base, config.lora, config.seed)


def fit(
    ready: Ready,
    prepared: PreparedRows,
    renderer: Renderer,
    config: TrainConfig,
    metrics: Path,
    checkpoint: Checkpoint | None = None,
) -> Fitted:
    """Train; one line of metrics for each step. Ctrl-C ends it after the step at hand (`stopped`), with a checkpoint.

    Raises IntegrityError when the rows' order is not kept, DivergedError when the loss is not a number.
    """
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    n_steps = planned_steps(config, len(prepared.input_ids), n_processes)
    stop = StopRequest()
    with quiet(), Progress(n_steps, "steps", "training") as progress, stop.listening():
        log = StepLog(metrics, progress, stop, checkpoint.step if checkpoint else 0)
        trainer = _trainer(ready, prepared, renderer.pad_id, config, n_processes, log)
        log.trainer = trainer
        if ready.watch is not None:  # before training: the model is still that of step 0
            trainer.add_callback(ready.watch(n_steps, log))
        if checkpoint is not None:
            trainer.order.start_at(_rows_seen(config, len(prepared.input_ids), n_processes, checkpoint.step))
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        except KeyboardInterrupt:
            stop.asked = True
    with suppress(OSError):
        (metrics.parent / FOLDER).rmdir()  # transformers makes it even when nothing is saved
    finished = len(log.lines) == n_steps
    return Fitted(trainer.accelerator.unwrap_model(ready.model), ready.defences, log.lines, stop.asked and not finished)


def _rows_seen(config: TrainConfig, n_rows: int, n_processes: int, step: int) -> int:
    """Rows that `step` optimiser steps consumed: counted from the plan, not taken from what the checkpoint says."""
    per_epoch = planned_steps(config.model_copy(update={"epochs": 1, "max_steps": None}), n_rows, n_processes)
    epochs, further = divmod(step, per_epoch)
    return epochs * n_rows + further * config.batch_size * config.grad_accum * n_processes


def _trainer(
    ready: Ready,
    prepared: PreparedRows,
    pad_id: int,
    config: TrainConfig,
    n_processes: int,
    log: StepLog,
) -> BallastTrainer:
    if n_processes == 1 and torch.cuda.device_count() > 1 and config.device != "cpu":
        raise BadInputError(
            "several GPUs are visible: set CUDA_VISIBLE_DEVICES to the one to train on, or start this with "
            "accelerate launch --num_processes N -m trainer.sft ..."
        )
    n_steps = planned_steps(config, len(prepared.input_ids), n_processes)
    options = sft_config(
        str(log.path.parent / FOLDER),
        reorder=config.reorder,
        max_steps=n_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accum,
        learning_rate=config.lr,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=bool(config.gradient_checkpointing),
        seed=config.seed,
        use_cpu=config.device == "cpu",
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or n_steps,
        report_to=list(config.report_to) or "none",
        run_name=config.out.name,
        project="ballast",
    )
    n_fill = -len(prepared.input_ids) % (config.batch_size * n_processes) if n_processes > 1 else 0
    trainer = BallastTrainer(
        model=ready.model,
        args=options,
        train_dataset=prepared.dataset(n_fill),
        processing_class=load_tokenizer(config.model),
        data_collator=Collator(pad_id),
        callbacks=[log],
        defences=ready.defences,
        order=(OnceCheck if config.reorder else OrderCheck)(len(prepared.input_ids)),
        keep_checkpoints=config.keep_checkpoints,
        frozen=ready.frozen,
    )
    if config.reserve is not None:
        trainer.reserve = Reserve(config.reserve, prepared.safe)
    prepared.check_dataset(trainer.train_dataset, n_fill)
    return trainer


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries say nothing below an error, draw no bars of their own, and print to stderr (trackers greet)."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("accelerate", "trl", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        yield
