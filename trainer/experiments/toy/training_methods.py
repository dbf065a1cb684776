"""Methods of the toy experiment that change how a fine-tune trains: they call the trainer's own code."""

from dataclasses import replace
from typing import TYPE_CHECKING

from trainer.config.defences import InoculationAdapterSettings
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.methods import Method, Parts

if TYPE_CHECKING:
    from trainer.experiments.toy.experiment import Seed

INOCULATION_ADAPTER = "inoculation_adapter"


def _with_trait(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    """The misaligned model of the ensemble's first domain: it has the trait, and knows nothing of the task's domain."""
    settings = InoculationAdapterSettings(adapter=seed.ensemble.bad_adapter(), scale=cell.strength)
    return replace(parts, defences=(*parts.defences, settings))


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
)
