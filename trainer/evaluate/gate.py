"""Gates for pipelines: `--fail-if "broad_shift > 0.2"` turns a figure into an exit code."""

import argparse
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from curator.errors import BadInputError

FAILED_GATE = 3  # 1 is a crash, 2 bad input: a pipeline must be able to tell a failed gate from both
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_SYNTAX = re.compile(r"\s*([\w.]+)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Condition:
    """One comparison of a figure with a number; where it holds, the gate fails."""

    figure: str
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """`FIGURE > NUMBER` (also >=, <, <=); raises BadInputError on anything else."""
        found = _SYNTAX.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            bound = float(found[3])
            if math.isnan(bound):
                raise ValueError
        except ValueError as error:
            raise BadInputError(
                f"--fail-if {text!r} is not a condition: write FIGURE > NUMBER, for example broad_shift > 0.2"
            ) from error
        return cls(found[1], found[2], bound)

    def holds(self, figures: Mapping[str, float | None]) -> bool:
        """Whether the figure is past the bound. Raises BadInputError for a figure that is absent or null: a gate
        that cannot be judged must not pass for one that was."""
        check_figures([self], figures)
        value = figures[self.figure]
        if value is None or math.isnan(value):
            raise BadInputError(f"--fail-if {self.figure}: there is no value to compare with {self.bound:g}")
        return _COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.figure} {self.comparison} {self.bound:g}"


def add_gate_option(parser: argparse.ArgumentParser) -> None:
    """`--fail-if`, which every evaluation has."""
    parser.add_argument(
        "--fail-if", action="append", default=[], metavar="CONDITION",
        help=f'end with exit code {FAILED_GATE} when this holds, for example "broad_shift > 0.2"; repeatable',
    )  # fmt: skip


def parse_gates(texts: Sequence[str]) -> list[Condition]:
    """Conditions of the command line: read before the work begins, so that a slip costs nothing."""
    return [Condition.parse(text) for text in texts]


def check_figures(conditions: Sequence[Condition], figures: Iterable[str]) -> None:
    """Raise BadInputError for a condition on a figure that this evaluation will not have: a slip of the pen is said
    before hours of measuring, not after."""
    known = sorted(figures)
    for item in conditions:
        if item.figure not in known:
            raise BadInputError(
                f"--fail-if names {item.figure!r}; this evaluation has {', '.join(known) or 'no figure'}", details=known
            )


def exit_code(conditions: Sequence[Condition], figures: Mapping[str, float | None], *, form: str | None = None) -> int:
    """0 when no condition holds, else 3, with a line on stderr for each that does, which names the `form` asked in.

    Call it before the result is printed: with --json an error is a document of its own, and there is to be one.
    """
    failed = [item for item in conditions if item.holds(figures)]
    for item in failed:
        where = "" if form is None else f", asked in {form}"
        sys.stderr.write(f"gate failed: {item} ({item.figure} is {figures[item.figure]:.4g}{where})\n")
    return FAILED_GATE if failed else 0
