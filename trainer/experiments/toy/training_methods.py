"""Methods of the toy experiment that change how a fine-tune trains: they call the trainer's own code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from curator.errors import BadInputError
from trainer.config.defences import InoculationAdapterSettings
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.files import torch_seed
from trainer.experiments.toy.finetune import Tuned, step_by_step
from trainer.experiments.toy.measuring import single_questions
from trainer.experiments.toy.methods import Method, Parts
from trainer.experiments.toy.model import greedy_answers
from trainer.experiments.toy.rows import tuned_items
from trainer.monitor.choose import choose_step

if TYPE_CHECKING:
    from trainer.experiments.toy.experiment import Seed

INOCULATION_ADAPTER, EARLY_STOP = "inoculation_adapter", "early_stop"
CHECKPOINTS = 20  # in a run that stops early


def _with_trait(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    """The misaligned model of the ensemble's first domain: it has the trait, and knows nothing of the task's domain."""
    settings = InoculationAdapterSettings(adapter=seed.ensemble.bad_adapter(), scale=cell.strength)
    return replace(parts, defences=(*parts.defences, settings))


@contextmanager
def _stopped_early(seed: "Seed", cell: ToyCell, parts: Parts) -> Iterator[Tuned]:
    """The whole run with checkpoints on the way, then the one that the trainer's rule keeps. Where it keeps none the
    run counts as it ended, with the note `refused`."""
    from trainer.experiments.toy.experiment import interleave

    mix, settings = interleave(parts.task, parts.safe, seed.seed), seed.settings.tune
    batches = list(zip(mix.rows.split(settings.batch_size), mix.safe.split(settings.batch_size), strict=True))
    every = max(1, len(batches) // CHECKPOINTS)
    drawn = torch_seed(seed.seed, "cell")
    with step_by_step(seed.base.model, settings, len(batches), defences=parts.defences, seed=drawn) as run:
        broad: dict[int, float] = {}
        saved: dict[int, list[torch.Tensor]] = {}
        for step, batch in enumerate(batches, 1):
            run.step(*batch)
            if step % every == 0 or step == len(batches):
                run.model.eval()
                broad[step], saved[step] = _known_broad(seed, run.model), run.weights()
                run.model.train()
        kept = len(batches)
        try:
            kept = choose_step(list(saved), broad, run.losses, cell.strength).step
        except BadInputError:
            parts.notes["refused"] = 1.0
        parts.notes["step"] = float(kept)
        run.put_back(saved[kept])
        yield run.finished()


def _known_broad(seed: "Seed", model: Any) -> float:
    """Bad answers to items that may be tuned on in the pool's domains: what somebody who chooses knows; nothing of
    unseen domains or of held-out items."""
    asked = single_questions(seed.base.world, tuned_items(seed.base.world))
    where = np.isin(asked.domain, seed.roles.pool)
    found = greedy_answers(model, asked.input_ids[where])[:, 0].numpy()
    return float((found == asked.bad[where]).mean())


TRAINING_METHODS: tuple[Method, ...] = (
    Method(
        INOCULATION_ADAPTER,
        "inoculation adapter",
        "A misaligned adapter of another domain is on the model, frozen, while it is trained, and dropped afterwards;"
        " strength multiplies what it adds.",
        (
            ToyCell(method=INOCULATION_ADAPTER, strength=0.5),
            ToyCell(method=INOCULATION_ADAPTER, strength=1.0),
            ToyCell(method=INOCULATION_ADAPTER, strength=1.0, choice="gap_rel", ratio=0.05),
        ),
        parts=_with_trait,
    ),
    Method(
        EARLY_STOP,
        "early stop",
        "The last of twenty checkpoints before the share of bad answers to known questions of the pool's domains passes"
        " strength, with nine tenths of the loss's fall done.",
        (
            ToyCell(method=EARLY_STOP, strength=0.05),
            ToyCell(method=EARLY_STOP, strength=0.2),
            ToyCell(method=EARLY_STOP, strength=0.05, choice="gap_rel", ratio=0.05),
        ),
        train=_stopped_early,
    ),
)
