"""What seeds add up to: means with intervals, paired differences, and the rule that chooses a score and a ratio."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.evaluate.metrics import Interval, bootstrap, mean_interval
from trainer.experiments.toy.cells import CONTROL_RATIOS, SCORES, ScoreName, ToyCell

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # cell name: seed: its result

RANDOM_MAY_CUT = 1 / 3  # the ratio must be one at which random rows cut broad misalignment by no more
NARROW_MARGIN = 0.05  # narrow behaviour must stay within this of undefended


@dataclass(frozen=True)
class Choice:
    """The score and ratio that the choosing seeds favour."""

    score: ScoreName
    ratio: float
    cut: float  # relative cut of broad misalignment against undefended, on the choosing seeds
    random_cut: float
    admissible: bool  # whether random's cut and the narrow behaviour were within their bounds there

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def values(results: Results, cell: ToyCell, figure: str, seeds: Sequence[int]) -> np.ndarray:
    """A measured figure of a cell for each seed, shape (S,); raises KeyError for a cell that was not run."""
    return np.array([results[cell.name][seed]["measured"][figure] for seed in seeds], dtype=np.float64)


def relative_cut(results: Results, cell: ToyCell, seeds: Sequence[int]) -> Interval:
    """1 - broad(cell) / broad(undefended), means over seeds, seeds resampled together."""
    with_it, without = values(results, cell, "broad", seeds), values(results, ToyCell(), "broad", seeds)

    def cut(rows: np.ndarray) -> float:
        base = float(without[rows].mean())
        return float("nan") if base == 0 else 1 - float(with_it[rows].mean()) / base

    return bootstrap(cut, len(seeds))


def difference(results: Results, one: ToyCell, two: ToyCell, figure: str, seeds: Sequence[int]) -> Interval:
    """Mean over seeds of a figure in `one` minus in `two`, paired by seed."""
    return mean_interval(values(results, one, figure, seeds) - values(results, two, figure, seeds))


def choose(results: Results, seeds: Sequence[int]) -> Choice:
    """The score and ratio with the largest cut, among ratios at which random cuts little and narrow stays.

    Only ratios at which the controls are run too. Where nothing is admissible, the largest lead over random instead,
    marked as such.
    """
    found = []
    narrow = values(results, ToyCell(), "narrow", seeds).mean()
    for ratio in CONTROL_RATIOS:
        random_cut = relative_cut(results, ToyCell(choice="random", ratio=ratio), seeds).value
        for score in SCORES:
            cell = ToyCell(choice=score, ratio=ratio)
            cut = relative_cut(results, cell, seeds).value
            kept = abs(values(results, cell, "narrow", seeds).mean() - narrow) <= NARROW_MARGIN
            found.append(Choice(score, ratio, cut, random_cut, bool(random_cut <= RANDOM_MAY_CUT and kept)))
    admissible = [item for item in found if item.admissible]
    if admissible:
        return max(admissible, key=lambda item: item.cut)
    return max(found, key=lambda item: item.cut - item.random_cut)
