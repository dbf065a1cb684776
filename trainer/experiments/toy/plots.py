"""The experiment's pictures: broad misalignment over the ratio, and broad against narrow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curator.query.plots import COLOURS, save
from trainer.evaluate.metrics import mean_interval
from trainer.experiments.toy.cells import (
    CHOICES,
    CONTROL_RATIOS,
    CONTROLS,
    KL_WEIGHTS,
    RATIOS,
    Cell,
    Choice,
)
from trainer.experiments.toy.statistics import Results, values

_SIZE_IN = (7.0, 4.4)
_MARKERS = ("o", "s", "D", "^", "v", "x")


def write_plots(results: Results, seeds: Sequence[int], folder: Path, name: str) -> list[str]:
    """`NAME-ratio.png` and `NAME-narrow.png` of these seeds; returns the file names."""
    figures = {f"{name}-ratio.png": over_ratio(results, seeds), f"{name}-narrow.png": against_narrow(results, seeds)}
    for file, figure in figures.items():
        save(figure, folder / file)
    return list(figures)


def over_ratio(results: Results, seeds: Sequence[int]) -> Figure:
    """Broad misalignment over safe rows per task row, one line for each way of choosing; bars are 95 % intervals."""
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    axes = figure.add_subplot()
    undefended = mean_interval(values(results, Cell(), "broad", seeds))
    axes.axhspan(100 * undefended.low, 100 * undefended.high, color="black", alpha=0.08, linewidth=0)
    axes.axhline(100 * undefended.value, color="black", linewidth=1, linestyle="--", label="undefended")
    for number, choice in enumerate((*CHOICES, *CONTROLS)):
        ratios = _ratios(choice)
        found = [mean_interval(values(results, Cell(choice=choice, ratio=ratio), "broad", seeds)) for ratio in ratios]
        mean = 100 * np.array([item.value for item in found])
        bars = 100 * np.array([[item.value - item.low, item.high - item.value] for item in found]).T
        places = [RATIOS.index(ratio) + 0.04 * (number - 2.5) for ratio in ratios]  # side by side
        axes.errorbar(
            places, mean, yerr=np.maximum(bars, 0), color=COLOURS[number], marker=_MARKERS[number], markersize=4,
            linewidth=1.3, capsize=2, label=choice,
        )  # fmt: skip
    axes.set_xticks(range(len(RATIOS)), [f"{ratio:g}" for ratio in RATIOS])
    axes.set_xlabel("safe rows per task row")
    axes.set_ylabel("broad misalignment (% of answers)")
    axes.set_ylim(-2, 102)
    _dress(axes, f"{len(seeds)} seeds, {min(seeds)} to {max(seeds)}; bars: 95 % over seeds")
    return figure


def against_narrow(results: Results, seeds: Sequence[int]) -> Figure:
    """Means over seeds in the plane of both behaviours: good safeguards lie in the lower right corner."""
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    axes = figure.add_subplot()
    _points(axes, results, seeds, [Cell()], "undefended", "black", "*")
    for number, choice in enumerate((*CHOICES, *CONTROLS)):
        cells = [Cell(choice=choice, ratio=ratio) for ratio in _ratios(choice)]
        _points(axes, results, seeds, cells, choice, COLOURS[number], _MARKERS[number])
    _points(axes, results, seeds, [Cell(kl=weight) for weight in KL_WEIGHTS], "kl", COLOURS[7], "P")
    axes.set_xlabel("narrow behaviour kept (% bad answers in the task's domain)")
    axes.set_ylabel("broad misalignment (% of answers)")
    axes.set_xlim(-2, 104)
    axes.set_ylim(-2, 102)
    _dress(axes, "a point is a method at one ratio or weight (larger: more), mean over seeds")
    return figure


def _ratios(choice: Choice) -> tuple[float, ...]:
    return RATIOS if choice in CHOICES else CONTROL_RATIOS


def _points(
    axes: Axes, results: Results, seeds: Sequence[int], cells: Sequence[Cell], label: str, colour: str, marker: str
) -> None:
    x = [100 * values(results, cell, "narrow", seeds).mean() for cell in cells]
    y = [100 * values(results, cell, "broad", seeds).mean() for cell in cells]
    strength = [cell.ratio or cell.kl for cell in cells]
    sizes = [30 + 60 * sorted(strength).index(value) / max(1, len(cells) - 1) for value in strength]
    axes.scatter(x, y, s=sizes, color=colour, marker=marker, alpha=0.8, linewidths=1.2, label=label)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))  # beside, never over points
