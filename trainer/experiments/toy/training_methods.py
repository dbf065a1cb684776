"""Methods of the toy experiment that change how a fine-tune trains: they call the trainer's own code."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from curator.errors import BadInputError
from trainer.config.defences import InoculationAdapterSettings
from trainer.config.monitor import ReserveSettings
from trainer.data.rows import IGNORED, ROW
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.files import torch_seed
from trainer.experiments.toy.finetune import FineTune, Tuned, step_by_step
from trainer.experiments.toy.measuring import single_questions
from trainer.experiments.toy.methods import RATIOS, Method, Parts
from trainer.experiments.toy.model import greedy_answers
from trainer.experiments.toy.rows import tuned_items
from trainer.loop.reserve import Reserve
from trainer.monitor.choose import choose_step

if TYPE_CHECKING:
    from trainer.experiments.toy.experiment import Seed

INOCULATION_ADAPTER, EARLY_STOP, RESERVE = "inoculation_adapter", "early_stop", "reserve"
CHECKPOINTS = 20  # in a run that looks at the model on the way
HELD_BACK = 0.5  # share of the safe rows in reserve


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
    with _begun(seed, parts, len(batches)) as run:
        broad: dict[int, float] = {}
        saved: dict[int, list[torch.Tensor]] = {}
        for step, batch in enumerate(batches, 1):
            run.step(*batch)
            if step % every == 0 or step == len(batches):
                broad[step], saved[step] = _known_broad(seed, run.model), run.weights()
        kept = len(batches)
        try:
            kept = choose_step(list(saved), broad, run.losses, cell.strength).step
        except BadInputError:
            parts.notes["refused"] = 1.0
        parts.notes["step"] = float(kept)
        run.put_back(saved[kept])
        yield run.finished()


@contextmanager
def _with_reserve(seed: "Seed", cell: ToyCell, parts: Parts) -> Iterator[Tuned]:
    """The plain mix in its order. A row that the trainer's reserve holds back is left out of its step: the mean over
    the other answers is what the trainer's loss is without its labels."""
    from trainer.experiments.toy.experiment import interleave

    mix = interleave(parts.task, parts.safe, seed.seed)
    reserve = Reserve(ReserveSettings(share=HELD_BACK, bound=cell.strength), mix.safe.tolist())
    steps = torch.arange(len(mix.rows)).split(seed.settings.tune.batch_size)
    every, n_safe, n_on = max(1, len(steps) // CHECKPOINTS), 0, 0
    with _begun(seed, parts, len(steps)) as run:
        for step, places in enumerate(steps, 1):
            (batch,) = reserve.held_back([{ROW: places, "labels": mix.rows[places]}])
            kept = places[(batch["labels"] != IGNORED).any(1)]
            if len(kept):  # a last step may be one row
                run.step(mix.rows[kept], mix.safe[kept])
            n_safe, n_on = n_safe + int(mix.safe[kept].sum()), n_on + int(reserve.on)
            if step % every == 0:
                reserve.judge(_known_broad(seed, run.model))
        parts.notes.update(n_safe_trained=float(n_safe), share_of_steps_on=n_on / len(steps))
        yield run.finished()


def _begun(seed: "Seed", parts: Parts, n_steps: int) -> AbstractContextManager[FineTune]:
    drawn = torch_seed(seed.seed, "cell")
    return step_by_step(seed.base.model, seed.settings.tune, n_steps, defences=parts.defences, seed=drawn)


def _known_broad(seed: "Seed", model: Any) -> float:
    """Bad answers to items that may be tuned on in the pool's domains: what somebody who chooses knows; nothing of
    unseen domains or of held-out items."""
    asked = single_questions(seed.base.world, tuned_items(seed.base.world))
    where = np.isin(asked.domain, seed.roles.pool)
    model.eval()
    found = greedy_answers(model, asked.input_ids[where])[:, 0].numpy()
    model.train()
    return float((found == asked.bad[where]).mean())


def _alone_and_mixed(method: str, strengths: Sequence[float], *, mixed: float) -> tuple[ToyCell, ...]:
    """The method without safe rows at each strength, and at the strength `mixed` with a few rows chosen by gap."""
    alone = [ToyCell(method=method, strength=strength) for strength in strengths]
    return (*alone, ToyCell(method=method, strength=mixed, choice="gap_rel", ratio=RATIOS[0]))


TRAINING_METHODS: tuple[Method, ...] = (
    Method(
        INOCULATION_ADAPTER,
        "inoculation adapter",
        "A misaligned adapter of another domain is on the model, frozen, while it is trained, and dropped afterwards;"
        " strength multiplies what it adds.",
        _alone_and_mixed(INOCULATION_ADAPTER, (0.5, 1.0), mixed=1.0),
        parts=_with_trait,
    ),
    Method(
        EARLY_STOP,
        "early stop",
        "The last of twenty checkpoints before the share of bad answers to known questions of the pool's domains passes"
        " strength, with nine tenths of the loss's fall done.",
        _alone_and_mixed(EARLY_STOP, (0.05, 0.2), mixed=0.05),
        train=_stopped_early,
    ),
    Method(
        RESERVE,
        "reserve",
        "Every other safe row carries no loss, but while the share of bad answers to known questions of the pool's"
        " domains, measured twenty times, is above strength; at most as many safe rows are trained as without it.",
        tuple(
            ToyCell(method=RESERVE, strength=bound, choice="gap_rel", ratio=ratio)
            for ratio in RATIOS
            for bound in (0.05, 0.2)  # those of the early stop
        ),
        train=_with_reserve,
    ),
)
