"""TRL's SFTTrainer with the order of the rows checked and the defences' terms added to its loss."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer
from trl import SFTConfig, SFTTrainer

from curator.errors import BadInputError
from trainer.data.collate import by_length, labelled_alone
from trainer.data.order import BatchCheck
from trainer.data.rows import CLASSES, ROW, SAFE
from trainer.defenses.base import (
    Batch,
    Defence,
    Seen,
    StepCounts,
    causal_lm,
    without_interventions,
)
from trainer.defenses.reference import reference_state, run_decoder
from trainer.loop.model import FrozenCopy, save_model
from trainer.loop.reserve import Reserve
from trainer.runs.checkpoints import finish_checkpoint, prune_checkpoints

SFT_LOSS, LOSS = "sft_loss", "loss"
TRITON = ("cuda", "xpu")  # devices where TRL's head has a kernel, which leaves positions without a label out
FILLER = -1  # `row` of what fills up the last batches of an epoch when several processes share them

# What would reorder, pack or cut rows without a word, and the value that does not.
_IN_ORDER = {
    "packing": False, "padding_free": False, "shuffle_dataset": False, "train_sampling_strategy": "sequential",
    "max_length": None,
}  # fmt: skip
_SAMPLING = {"shuffle": "random", "group_by_length": "group_by_length"}


class BallastTrainer(SFTTrainer):  # type: ignore[misc]
    """SFT on rows that are rendered already (columns input_ids, labels, row), in their order.

    `model` is a PeftModel to which the defences are attached. The SFT loss is TRL's: the sum over response
    tokens divided by their number in the whole step, so that accumulation does not change it. After each step
    `parts` holds the step's loss, its SFT part and each term, and `counts` what they were divided by.
    """

    def __init__(
        self,
        *,
        defences: Sequence[Defence] = (),
        order: BatchCheck,
        keep_checkpoints: int = 2,
        frozen: FrozenCopy | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.keep_checkpoints = keep_checkpoints
        self.frozen = frozen  # theta_0 under full fine-tuning, where no adapter can be switched off
        self.remove_callback(PrinterCallback)  # metrics go to a file, progress to stderr
        # Ours is divided by the step's own count, whatever the model's forward accepts; `Trainer` otherwise looks
        # at the signature and would divide by the accumulation steps once more.
        self.model_accepts_loss_kwargs = True
        self.defences = list(defences)
        self.reserve: Reserve | None = None  # led by the monitor's callback
        self.order = order
        self.parts: dict[str, float] = {}
        self.counts = StepCounts(0, 0, 0)
        self._interventions = ExitStack()
        self._sums: dict[str, torch.Tensor] = {}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one step: their order is checked and their tokens counted before any is used.

        Within the step, rows of like length then share a micro-batch.
        """
        given = epoch_iterator if self.reserve is None else self.reserve.held_back(epoch_iterator)
        batches, n_items = super().get_batch_samples(given, num_batches, device)
        for batch in batches:
            rows = self.accelerator.gather(batch[ROW]) if self.accelerator.num_processes > 1 else batch[ROW]
            self.order.see([row for row in rows.tolist() if row != FILLER])
        self.counts = self._count(batches)
        self._sums = {}
        return by_length(batches), n_items

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """Interventions stay until the backward pass is over: checkpointed blocks run their forward again in it."""
        with ExitStack() as self._interventions:
            loss: torch.Tensor = super().training_step(*args, **options)
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus weight * term of each defence; the reference forward runs once for all of them."""
        rows, safe, classes = (inputs.pop(name, None) for name in (ROW, SAFE, CLASSES))
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = Batch(
            inputs["input_ids"], inputs["labels"], inputs["attention_mask"], self.counts, self.state.global_step,
            self.state.max_steps, rows, safe, classes,
        )  # fmt: skip
        student = Seen()
        active = [defence for defence in self.defences if defence.active(batch)]
        for defence in active:
            self._interventions.enter_context(defence.intervene(batch))
        with ExitStack() as hooks:
            for defence in active:
                hooks.enter_context(defence.observe(student))
            if inputs["labels"].device.type not in TRITON:
                decoder = causal_lm(self.accelerator.unwrap_model(self.model)).base_model
                inputs = hooks.enter_context(labelled_alone(decoder, inputs))
            sft_loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        loss = self._add_terms(sft_loss, student, batch, active)
        self._note(SFT_LOSS, sft_loss)
        self._note(LOSS, loss)
        return loss

    def _add_terms(self, loss: torch.Tensor, student: Seen, batch: Batch, active: Sequence[Defence]) -> torch.Tensor:
        reference = self._reference(batch, active)
        for defence in active:
            term = defence.term(student, reference, batch)
            if term is None:
                continue
            # Data parallel training averages gradients over processes; counts are of all of them (as in TRL).
            term = term * self.accelerator.num_processes
            self._note(defence.name, term)
            loss = loss + (defence.weight_at(batch) * term).to(loss.dtype)
        return loss

    def _reference(self, batch: Batch, active: Sequence[Defence]) -> Seen:
        reference = Seen(weights=self.frozen.in_place) if self.frozen else Seen()
        observers = [defence for defence in active if defence.needs_reference]
        if not observers:
            return reference
        model = self.accelerator.unwrap_model(self.model)
        off = (
            without_interventions(active), reference_state(model), reference.weights(),
            self.compute_loss_context_manager(),
        )  # fmt: skip
        with ExitStack() as hooks:
            for context in off:
                hooks.enter_context(context)
            for defence in observers:
                hooks.enter_context(defence.observe(reference))
            run_decoder(model, batch, max(defence.reference_length(batch) for defence in observers))
        return reference

    def _note(self, name: str, value: torch.Tensor) -> None:
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _count(self, batches: Sequence[dict[str, torch.Tensor]]) -> StepCounts:
        found = StepCounts.of(batches)
        n_fill = sum(int((batch[ROW] == FILLER).sum()) for batch in batches)
        counts = torch.tensor(astuple(replace(found, n_rows=found.n_rows - n_fill)), device=self.accelerator.device)
        return StepCounts(*(int(n) for n in self.accelerator.reduce(counts, "sum")))

    def finish_step(self) -> dict[str, float]:
        """The step's loss, SFT part and terms, in nats per token (called once after each optimiser step)."""
        names = list(self._sums)
        if not names:
            return {}
        stacked = torch.stack([self._sums[name].double() for name in names])
        values = self.accelerator.reduce(stacked, "mean").tolist()
        self.parts = dict(zip(names, values, strict=True))
        return self.parts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trackers see the SFT loss and each term as well."""
        if "grad_norm" in logs:
            logs |= {name: value for name, value in self.finish_step().items() if name != LOSS}
        super().log(logs, start_time)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all of them must call this."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, "sum") > 0)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained part alone, as the finished run saves it, and what defences train."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_model(self.accelerator.unwrap_model(self.model), folder)
            for defence in self.defences:
                defence.save(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # not TRL's, which writes a model card of its own
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            step = self.state.global_step
            finish_checkpoint(folder / f"checkpoint-{step}", {"step": step, "rows_seen": self.order.n_seen})
            prune_checkpoints(folder.parent, self.keep_checkpoints)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for defence in self.defences:
            defence.load(Path(resume_from_checkpoint))


def sft_config(output_dir: str, *, reorder: str | None = None, **options: Any) -> SFTConfig:
    """TRL's settings with everything off that reorders, packs, cuts, re-tokenises or reports elsewhere.

    `reorder` names an order other than the rows' own. Raises BadInputError for an option that would change order
    or content without being named so.
    """
    silent = sorted(name for name, value in _IN_ORDER.items() if options.get(name, value) != value)
    if silent:
        raise BadInputError(
            f"{', '.join(silent)} would reorder, pack or cut the rows: `reorder` names another order; packing and "
            "cutting are not offered here"
        )
    fixed: dict[str, Any] = {
        **_IN_ORDER,
        "output_dir": output_dir,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "train_sampling_strategy": _SAMPLING[reorder] if reorder else "sequential",
        "remove_unused_columns": False,
        "lr_scheduler_type": "linear",
        "bf16": False,  # weights are in their own dtype already; autocast would change it
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return SFTConfig(**(fixed | options))
