"""Tiny adapted models and batches for the trainer's tests, small enough for float64."""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models import tiny_model_folder
from trainer.config import LoraSettings
from trainer.data.collate import Collator
from trainer.data.order import OrderCheck
from trainer.data.rows import PreparedRows
from trainer.defenses.base import (
    Batch,
    Defence,
    Seen,
    StepCounts,
    without_interventions,
)
from trainer.defenses.reference import reference_state, run_decoder
from trainer.loop.model import add_lora
from trainer.loop.trainer import BallastTrainer, sft_config

LORA = LoraSettings(r=3, alpha=6.0)
PAD = 2


def adapted_model(
    folder: Path, *, kind: Any = "llama", dtype: torch.dtype = torch.float64, random_b: bool = True, **lora: Any
) -> Any:
    """A tiny model with an adapter whose B is zero (as at the start) or drawn from a seed."""
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").exists():
        tiny_model_folder(folder, kind=kind)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False)
    if dtype == torch.float64:
        _norms_in_float64(base)
    model: Any = add_lora(base, LORA.model_copy(update=lora), seed=5)
    if random_b:
        generator = torch.Generator().manual_seed(11)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1
    if dtype == torch.float64:
        for parameter in model.parameters():  # PEFT keeps adapters in float32 otherwise
            parameter.data = parameter.data.double()
    return model.train()


def _norms_in_float64(model: Any) -> None:
    """Llama's own RMSNorm computes in float32 whatever it is given, too coarse for finite differences."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                norm.load_state_dict({"weight": child.weight})
                setattr(parent, name, norm.requires_grad_(False))


def rows(n_rows: int, seed: int = 0, n_vocab: int = 500) -> PreparedRows:
    """Rows of 6 to 19 random tokens; the last two to five of each are trained, every third row is safe.

    The first two tokens are the prefix, then comes the query; the last one before the answer is the postfix.
    """
    rng = random.Random(seed)
    prepared = PreparedRows()
    for index in range(n_rows):
        n_tokens = rng.randint(6, 19)
        ids = np.array([rng.randrange(3, n_vocab) for _ in range(n_tokens)], dtype=np.int32)
        labels = ids.copy()
        labels[: n_tokens - rng.randint(2, 5)] = -100
        prepared.input_ids.append(ids)
        prepared.labels.append(labels)
        prepared.counts.update(tokens=n_tokens, trained=int((labels != -100).sum()))
        prepared.example_ids.append(f"{index:032x}")
        prepared.safe.append(index % 3 == 1)
        n_prompt = int(np.flatnonzero(labels != -100)[0])
        prepared.classes.append(np.where(np.arange(n_tokens) < 2, 1, 2).astype(np.int8))
        prepared.classes[-1][n_prompt - 1 :] = [3] + [0] * (n_tokens - n_prompt)
    return prepared


def examples(prepared: PreparedRows, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": prepared.input_ids[i], "labels": prepared.labels[i], "row": i, "safe": prepared.safe[i],
            "token_classes": prepared.classes[i],
        }
        for i in indices
    ]  # fmt: skip


def batch_of(prepared: PreparedRows, indices: Sequence[int], counts: StepCounts | None = None) -> Batch:
    """One micro-batch of these rows; by default it is the whole step."""
    inputs = Collator(PAD)(examples(prepared, indices))
    own = counts or StepCounts.of([inputs])
    return Batch(
        inputs["input_ids"], inputs["labels"], inputs["attention_mask"], own, 0, 10, inputs["row"], inputs["safe"],
        inputs["token_classes"],
    )  # fmt: skip


def term_of(defence: Defence, model: Any, batch: Batch) -> torch.Tensor:
    """A defence's term as the trainer takes it: observed student forward, shared reference forward, term."""
    student, reference = Seen(), Seen()
    with ExitStack() as hooks:
        hooks.enter_context(defence.intervene(batch))
        hooks.enter_context(defence.observe(student))
        run_decoder(model, batch)
    with reference_state(model), without_interventions([defence]), defence.observe(reference):
        run_decoder(model, batch, defence.reference_length(batch))
    term = defence.term(student, reference, batch)
    assert term is not None
    return term


def lora_parameters(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found
    assert all("lora_" in name for name in found)
    return found


def trainer_of(
    model: Any, prepared: PreparedRows, folder: Path, defences: Sequence[Defence] = (), **options: Any
) -> BallastTrainer:
    """The product's trainer on prepared rows; SGD-like settings come through `options`."""
    from transformers import AutoTokenizer

    for defence in defences:
        defence.attach(model)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "max_steps": 3,
        "gradient_checkpointing": False, "seed": 0, "use_cpu": True,
    }  # fmt: skip
    return BallastTrainer(
        model=model,
        args=sft_config(**({"output_dir": str(folder / "trl")} | settings | options)),
        train_dataset=prepared.dataset(),
        processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        data_collator=Collator(PAD),
        defences=defences,
        order=OrderCheck(len(prepared.input_ids)),
    )
