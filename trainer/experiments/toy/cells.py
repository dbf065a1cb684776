"""A cell of the experiment: one fine-tune, by task, choice of safe rows, ratio, regulariser and method."""

from dataclasses import dataclass
from typing import Annotated, Literal

from trainer.config.flags import Option
from trainer.config.ranges import not_negative

ScoreName = Literal["gap_rel", "gap_abs", "gap_contrast"]
SCORES: tuple[ScoreName, ...] = ("gap_rel", "gap_abs", "gap_contrast")
Choice = Literal["none", "random", "gap_rel", "gap_abs", "gap_contrast", "bottom_gap", "shuffled"]
PoolKind = Literal["whole", "unrevealing"]
TaskName = Literal["bad", "good", "benign"]  # good: the control of a comparison

PLAIN = "plain"  # the method of a mix and the trainer's regularisers, and nothing else
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

    # A method of trainer.experiments.toy.methods, and its strength where it has one (its help says of what).
    method: Annotated[str, Option("NAME", help="how the fine-tune is made of its rows; docs/toy.md lists them")] = PLAIN
    strength: Annotated[float, Option(help="strength of that method, where it has one", parse=not_negative)] = 0.0

    @property
    def name(self) -> str:
        """The cell's file name."""
        parts: list[str] = [self.task, self.choice]
        parts += [f"r{self.ratio:g}"] if self.ratio else []
        parts += [self.pool] if self.pool != "whole" else []
        parts += [f"{name}{weight:g}" for name, weight in self.weights().items() if weight]
        parts += [self.method] if self.method != PLAIN else []
        parts += [f"s{self.strength:g}"] if self.strength else []
        return "-".join(parts)

    def weights(self) -> dict[str, float]:
        """Weight of each regulariser."""
        return {name: getattr(self, name) for name in REGULARISERS}
