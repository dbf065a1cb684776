"""The experiment's pictures: broad misalignment over the ratio, and broad against narrow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from curator.query.plots import COLOURS, legend_beside, new_axes, save
from trainer.evaluate.metrics import mean_interval
from trainer.experiments.toy.cells import (
    CHOICES,
    CONTROL_RATIOS,
    CONTROLS,
    KL_WEIGHTS,
    RATIOS,
    Choice,
    ToyCell,
)
from trainer.experiments.toy.statistics import Results, values

_MARKERS = ("o", "s", "D", "^", "v", "x")


def write_plots(results: Results, seeds: Sequence[int], folder: Path, name: str) -> list[str]:
    """`NAME-ratio.png` and `NAME-narrow.png` of these seeds; returns the file names."""
    figures = {f"{name}-ratio.png": over_ratio(results, seeds), f"{name}-narrow.png": against_narrow(results, seeds)}
    for file, figure in figures.items():
        save(figure, folder / file)
    return list(figures)


def over_ratio(results: Results, seeds: Sequence[int]) -> Figure:
    """Broad misalignment over safe rows per task row, one line for each way of choosing; bars are 95 % intervals."""
    undefended = mean_interval(values(results, ToyCell(), "broad", seeds))
    least = min(RATIOS)
    chosen = ToyCell(choice="gap_rel", ratio=least), ToyCell(choice="random", ratio=least)
    by_gap, at_random = (100 * values(results, cell, "broad", seeds).mean() for cell in chosen)
    figure, axes = new_axes(
        f"broad misalignment {100 * undefended.value:.0f} % undefended; at {100 * least:g} % rows {at_random:.0f}"
        f" % (random), {by_gap:.0f} % (chosen by gap_rel); {len(seeds)} seeds, {min(seeds)} to {max(seeds)}; bars: 95 %"
    )
    axes.axhspan(100 * undefended.low, 100 * undefended.high, color="black", alpha=0.08, linewidth=0)
    axes.axhline(100 * undefended.value, color="black", linewidth=1, linestyle="--", label="undefended")
    for number, choice in enumerate((*CHOICES, *CONTROLS)):
        ratios = _ratios(choice)
        found = [
            mean_interval(values(results, ToyCell(choice=choice, ratio=ratio), "broad", seeds)) for ratio in ratios
        ]
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
    legend_beside(axes)
    return figure


def against_narrow(results: Results, seeds: Sequence[int]) -> Figure:
    """Means over seeds in the plane of both behaviours: good safeguards lie in the lower right corner."""
    figure, axes = new_axes(
        "lower right is best: the narrow behaviour stays, broad misalignment goes; a point is a method at one ratio or"
        f" weight (larger: more), mean over {len(seeds)} seeds"
    )
    shown = [("undefended", [ToyCell()], "black", "*")]
    for number, choice in enumerate((*CHOICES, *CONTROLS)):
        cells = [ToyCell(choice=choice, ratio=ratio) for ratio in _ratios(choice)]
        shown.append((choice, cells, COLOURS[number], _MARKERS[number]))
    shown.append(("kl", [ToyCell(kl=weight) for weight in KL_WEIGHTS], COLOURS[7], "P"))
    for label, cells, colour, marker in shown:
        x, y = ([100 * values(results, cell, figure, seeds).mean() for cell in cells] for figure in ("narrow", "broad"))
        axes.scatter(x, y, s=_sizes(cells), color=colour, marker=marker, alpha=0.8, linewidths=1.2, label=label)
    axes.set_xlabel("narrow behaviour kept (% bad answers in the task's domain)")
    axes.set_ylabel("broad misalignment (% of answers)")
    axes.set_xlim(-2, 104)
    axes.set_ylim(-2, 102)
    legend_beside(axes)
    return figure


def _ratios(choice: Choice) -> tuple[float, ...]:
    return RATIOS if choice in CHOICES else CONTROL_RATIOS


def _sizes(cells: Sequence[ToyCell]) -> list[float]:
    """Areas of a line's points: larger for more."""
    strength = [cell.ratio or cell.kl for cell in cells]
    return [30 + 60 * sorted(strength).index(value) / max(1, len(cells) - 1) for value in strength]
