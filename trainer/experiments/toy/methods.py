"""The methods that the experiment compares: each a name, what it changes of a fine-tune, and the cells that it runs.

A method calls the product's own code. `parts` changes what a fine-tune is made of (rows, defences); a method that the
plain loop cannot train has a `train` of its own. New entries stand in `data_methods` and `training_methods`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from curator.errors import BadInputError
from trainer.defenses import DefenceSettings
from trainer.experiments.toy.cells import PLAIN, SCORES, Choice, ToyCell
from trainer.experiments.toy.finetune import Tuned
from trainer.experiments.toy.world import Ints

if TYPE_CHECKING:
    from trainer.experiments.toy.experiment import Seed

RATIOS = (0.05, 0.2)
CHOICES: tuple[Choice, ...] = ("random", *SCORES)
CONTROLS: tuple[Choice, ...] = ("bottom_gap", "shuffled")
CONTROL = ToyCell(task="good")  # what any training does: the same recipe on good answers of the same prompts
KL_WEIGHTS = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Parts:
    """What a fine-tune is made of. Rows are token ids, (N, T), of any lengths (`with_prefix`, `padded`); task rows stay
    in their order and safe rows are spread among them."""

    task: Ints
    safe: Ints
    defences: tuple[DefenceSettings, ...] = ()
    n_revealing: int = 0  # of the safe rows
    notes: dict[str, float] = field(default_factory=dict)  # what else a result is to say, e.g. the step that was kept


def unchanged(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    """The parts as the cell's other fields give them."""
    return parts


def train_plainly(seed: "Seed", cell: ToyCell, parts: Parts) -> AbstractContextManager[Tuned]:
    """One epoch over the interleaved rows under the defences."""
    return seed.tune(parts)


@dataclass(frozen=True)
class Method:
    """One method. `label` is its name in the report, `help` one sentence on what it does and what `strength` is.

    `cells` are its settings in the experiment, all with this `method` and the task "bad"; the benign task is run beside
    each of them. A method with `own_task` trains on another task set: its cells stand among the controls, are compared
    with no other safeguard and cannot be chosen.
    """

    name: str
    label: str
    help: str
    cells: Sequence[ToyCell]
    parts: Callable[["Seed", ToyCell, Parts], Parts] = unchanged
    train: Callable[["Seed", ToyCell, Parts], AbstractContextManager[Tuned]] = train_plainly
    own_task: bool = False


def _plain_cells() -> tuple[ToyCell, ...]:
    cells = [ToyCell()]
    cells += [ToyCell(choice=choice, ratio=ratio) for ratio in RATIOS for choice in CHOICES]
    cells += [ToyCell(kl=weight) for weight in KL_WEIGHTS]
    cells += [ToyCell(ldifs=weight) for weight in (0.1, 1.0)]
    return (*cells, ToyCell(treft=10.0), *(ToyCell(steering=alpha) for alpha in (1.0, 5.0)))


PLAIN_METHOD = Method(
    PLAIN, "", "Safe rows spread among the task's, and the trainer's regularisers: no more.", _plain_cells()
)


def methods() -> dict[str, Method]:
    """Every method by name."""
    # They import this module for `Method` and `Parts`.
    from trainer.experiments.toy.data_methods import DATA_METHODS
    from trainer.experiments.toy.training_methods import TRAINING_METHODS

    return {method.name: method for method in (PLAIN_METHOD, *DATA_METHODS, *TRAINING_METHODS)}


def method_of(cell: ToyCell) -> Method:
    """The method of a cell; raises BadInputError for an unknown name."""
    known = methods()
    if cell.method not in known:
        raise BadInputError(f"there is no method {cell.method!r} of the toy model; known are {', '.join(known)}")
    return known[cell.method]


def defended() -> tuple[ToyCell, ...]:
    """The undefended cell and every safeguard that is compared."""
    return tuple(cell for method in methods().values() if not method.own_task for cell in method.cells)


def controls() -> tuple[ToyCell, ...]:
    """What shows that it is the choice that helps: good answers, the gap turned round or dealt out to other rows, and
    pools without revealing rows; and the methods with a task set of their own."""
    cells = [CONTROL]
    for ratio in RATIOS:
        cells += [ToyCell(choice=choice, ratio=ratio) for choice in CONTROLS]
        cells += [ToyCell(choice=choice, ratio=ratio, pool="unrevealing") for choice in CHOICES]
    return (*cells, *(cell for method in methods().values() if method.own_task for cell in method.cells))


def benign(cell: ToyCell) -> ToyCell:
    """The same safeguard on the benign task."""
    return replace(cell, task="benign")


def grid() -> tuple[ToyCell, ...]:
    """Every cell of a seed."""
    return (*defended(), *controls(), *map(benign, defended()))
