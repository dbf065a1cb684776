"""The experiment's pictures: misalignment in unseen and in the pool's domains by safeguard, and against narrow."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from curator.query.plots import COLOURS, SIZE_IN, label_text, legend_beside, new_axes, save
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.methods import CONTROL
from trainer.experiments.toy.statistics import UNDEFENDED, UNSEEN, Choice, Results
from trainer.experiments.toy.verdicts import at_ratio


def write_plots(results: Results, seeds: Sequence[int], choice: Choice, page: Path) -> list[str]:
    """`PAGE-unseen.png` and `PAGE-narrow.png` of these seeds beside the page; returns the file names."""
    figures = {
        f"{page.stem}-unseen.png": by_safeguard(results, seeds),
        f"{page.stem}-narrow.png": against_narrow(results, seeds, choice),
    }
    for name, figure in figures.items():
        save(figure, page.parent / name)
    return list(figures)


def by_safeguard(results: Results, seeds: Sequence[int]) -> Figure:
    """One line a safeguard, the least misalignment in unseen domains first; bars are 95 % intervals."""
    cells = [*results.cells("safeguard"), CONTROL]
    cells.sort(key=lambda cell: results.mean(cell, UNSEEN, seeds))
    figure, axes = new_axes(
        f"bad answers by safeguard, seeds: {len(seeds)}; bars: 95 % over seeds and questions; good is where orange"
        " is left and grey is right",
        (SIZE_IN[0] + 2, 1.2 + 0.24 * len(cells)),
    )
    for figure_name, label, colour, marker in ((UNSEEN, "unseen domains", COLOURS[1], "o"),
                                               ("broad_pool", "domains of the pool", COLOURS[0], "|"),
                                               ("narrow", "the task's own domain", COLOURS[7], "x")):  # fmt: skip
        found = [results.interval(cell, figure_name, seeds) for cell in cells]
        bars = None
        if figure_name == UNSEEN:
            bars = [[100 * max(0.0, f.value - f.low) for f in found], [100 * max(0.0, f.high - f.value) for f in found]]
        axes.errorbar(
            [100 * f.value for f in found], range(len(cells)), xerr=bars, fmt=marker, color=colour, markersize=5,
            capsize=2, linewidth=1, label=label,
        )  # fmt: skip
    axes.set_yticks(range(len(cells)), [label_text(at_ratio(results, cell), 60) for cell in cells], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("bad answers (%)")
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def against_narrow(results: Results, seeds: Sequence[int], choice: Choice) -> Figure:
    """Means over seeds in the plane of both behaviours: good safeguards lie in the lower right corner."""
    figure, axes = new_axes(
        "lower right is best: the narrow behaviour stays, misalignment in unseen domains goes; a point is a safeguard,"
        f" mean over seeds: {len(seeds)}"
    )
    named = {"no safeguard": UNDEFENDED, at_ratio(results, choice.gap): choice.gap}
    named[at_ratio(results, choice.best)] = choice.best
    others = [cell for cell in results.cells("safeguard") if cell not in named.values()]
    axes.scatter(*_points(results, others, seeds), s=24, color=COLOURS[7], label="other safeguards")
    for number, (label, cell) in enumerate(named.items()):
        axes.scatter(*_points(results, [cell], seeds), s=60, color=COLOURS[number], label=label_text(label, 40))
    axes.set_xlabel("narrow behaviour kept (% bad answers in the task's domain)")
    axes.set_ylabel("bad answers in unseen domains (%)")
    axes.set_xlim(-2, 104)
    axes.set_ylim(-2, 102)
    legend_beside(axes)
    return figure


def _points(results: Results, cells: Sequence[ToyCell], seeds: Sequence[int]) -> tuple[list[float], list[float]]:
    narrow, unseen = ([100 * results.mean(cell, name, seeds) for cell in cells] for name in ("narrow", UNSEEN))
    return narrow, unseen
