"""The cells of the experiment: one fine-tune each, by task, choice of safe rows, ratio and regulariser."""

from dataclasses import dataclass
from typing import Annotated, Literal

from trainer.config.flags import Option
from trainer.config.ranges import not_negative

ScoreName = Literal["gap_rel", "gap_abs", "gap_contrast"]
SCORES: tuple[ScoreName, ...] = ("gap_rel", "gap_abs", "gap_contrast")
Choice = Literal["none", "random", "gap_rel", "gap_abs", "gap_contrast", "bottom_gap", "shuffled"]
CHOICES: tuple[Choice, ...] = ("random", *SCORES)
CONTROLS: tuple[Choice, ...] = ("bottom_gap", "shuffled")
PoolKind = Literal["whole", "unrevealing"]
TaskName = Literal["bad", "good", "benign"]  # good: the control of a comparison

RATIOS = (0.05, 0.2, 0.33, 0.5)
CONTROL_RATIOS = (0.05,)  # of bottom_gap, of shuffled gaps, and of the pool without revealing rows
BENIGN_RATIO = 0.2
KL_WEIGHTS = (0.1, 0.3, 1.0)
REGULARISERS = ("kl", "ldifs", "treft", "steering")


@dataclass(frozen=True)
class ToyCell:
    """One fine-tune. `ratio` is safe rows per task row; pool "unrevealing" has no persona-revealing row."""

    task: Annotated[TaskName, Option(help="task set")] = "bad"
    choice: Annotated[Choice, Option(help="how safe rows are chosen")] = "none"
    ratio: Annotated[float, Option(help="safe rows per task row", parse=not_negative)] = 0.0
    pool: PoolKind = "whole"
    # Weights of what is added to the loss or, for steering, to the residual stream (alpha); 0 for none.
    kl: Annotated[float, Option("WEIGHT", help="weight of KL on answers", parse=not_negative)] = 0.0
    ldifs: Annotated[float, Option("WEIGHT", help="weight of LDIFS", parse=not_negative)] = 0.0
    treft: Annotated[float, Option("WEIGHT", help="weight of TReFT", parse=not_negative)] = 0.0
    steering: Annotated[
        float,
        Option(
            "ALPHA",
            help="add this much of the persona vector while training; 1 is the whole way from good to bad",
        ),
    ] = 0.0

    @property
    def name(self) -> str:
        """The cell's file name."""
        parts = [self.task, self.choice]
        parts += [f"r{self.ratio:g}"] if self.ratio else []
        parts += [self.pool] if self.pool != "whole" else []
        parts += [f"{name}{weight:g}" for name, weight in self.weights().items() if weight]
        return "-".join(parts)

    def weights(self) -> dict[str, float]:
        """Weight of each regulariser."""
        return {name: getattr(self, name) for name in REGULARISERS}


def grid() -> tuple[ToyCell, ...]:
    """Every cell of a seed, the most telling first."""
    cells = [ToyCell(), *(ToyCell(choice=choice, ratio=RATIOS[0]) for choice in CHOICES)]
    for ratio in CONTROL_RATIOS:
        cells += [ToyCell(choice=choice, ratio=ratio) for choice in CONTROLS]
        cells += [ToyCell(choice=choice, ratio=ratio, pool="unrevealing") for choice in CHOICES]
    cells += [ToyCell(kl=weight) for weight in KL_WEIGHTS]
    cells += [ToyCell(choice=choice, ratio=ratio) for ratio in RATIOS[1:] for choice in CHOICES]
    cells += [ToyCell(task="benign")]
    cells += [ToyCell(task="benign", choice=choice, ratio=BENIGN_RATIO) for choice in CHOICES]
    cells += [ToyCell(task="benign", kl=weight) for weight in KL_WEIGHTS]
    return tuple(cells)
