"""Three pictures of a comparison: broad against narrow, the criteria as a matrix, and the sweep over ratios."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curator.errors import BadInputError
from curator.query.plots import COLOURS, legend_beside, new_axes, style
from trainer.evaluate.metrics import OverSeeds
from trainer.experiments.compare.methods import UNDEFENDED
from trainer.experiments.compare.settings import Criteria, Criterion
from trainer.experiments.compare.statistics import CRITERIA
from trainer.experiments.compare.summary import TableRow

_MARKERS = "s^DvPX*h"  # one a ratio; methods without one are drawn as circles
# Beyond Okabe and Ito's eight, for grids of more methods: darker hues, distinguished by lightness.
_COLOURS = (*COLOURS, "#5B2A86", "#7A4B00", "#004D40", "#8C1D40", "#3D5A80", "#6B8E23", "#B8860B", "#483D8B")
_FILL = {"yes": "#009E73", "no": "#D55E00", "unclear": "#E8DCA8", "moot": "#DDDDDD", "not measured": "#F4F4F4"}
_TITLES = {
    "broad": "broad misalignment\nprevented", "narrow": "narrow behaviour\nkept", "benign": "benign task\nlearnt",
    "coherent": "coherent",
}  # fmt: skip


def broad_against_narrow(rows: Sequence[TableRow], criteria: Criteria) -> Figure:
    """One point a method with its intervals: right is more narrow behaviour, down is less broad misalignment.

    Raises BadInputError when no row has both figures.
    """
    points = {row.label: (_judged(row, criteria.narrow), _judged(row, criteria.broad)) for row in rows}
    shown = [row for row in rows if None not in points[row.label]]
    if not shown:
        raise BadInputError("nothing to draw: no finished cell has narrow and broad figures")
    seeds = sorted({len(row.seeds) for row in shown})
    title = f"means over {' or '.join(map(str, seeds))} seed(s), 95 % t intervals"
    figure, axes = new_axes(title, (7.8, 5.0))
    methods = list(dict.fromkeys(row.method for row in shown))
    ratios = sorted({row.ratio for row in shown if row.ratio is not None})
    for row in shown:
        x, y = points[row.label]
        assert x is not None
        assert y is not None
        marker = "o" if row.ratio is None else _MARKERS[ratios.index(row.ratio) % len(_MARKERS)]
        colour = _COLOURS[methods.index(row.method) % len(_COLOURS)]
        axes.errorbar(
            x.mean, y.mean, xerr=_bars(x), yerr=_bars(y), fmt=marker, markersize=7, color=colour,
            markeredgecolor="white", markeredgewidth=0.5, elinewidth=0.7, zorder=3,
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(_label(criteria.narrow))
    axes.set_ylabel(_label(criteria.broad))
    seeds = sorted({len(row.seeds) for row in shown})
    axes.set_title(f"means over {' or '.join(map(str, seeds))} seed(s), 95 % intervals", fontsize=10)
    keys = [_key(name, "o", _COLOURS[place % len(_COLOURS)]) for place, name in enumerate(methods)]
    keys += [_key(f"at {100 * ratio:g} %", _MARKERS[n % len(_MARKERS)], "#555555") for n, ratio in enumerate(ratios)]
    legend_beside(axes, keys)
    return figure


def _judged(row: TableRow, criterion: Criterion) -> OverSeeds | None:
    """The figure that a criterion judges: as it is, or minus the benign run's."""
    found = row.figures if criterion.minus is None else row.over_benign
    return found.get(criterion.figure)


def _label(criterion: Criterion) -> str:
    """A criterion's figure in words, with its unit and what it is taken minus."""
    figure = criterion.figure
    minus = "before training" if criterion.minus is None else f"the {criterion.minus} run"
    if figure == "perplexity_ratio":
        unit = "after over before"
    elif "margin" in figure:
        unit = f"nats per token, minus {minus}"
    elif figure.endswith("_shift"):
        unit = f"share of prompts, minus {minus}"
    else:
        unit = "share, 0 to 1" if criterion.minus is None else f"share, minus {minus}"
    return f"{figure.replace('_', ' ')}\n({unit})"


def _key(label: str, marker: str, colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label)


def criteria_matrix(rows: Sequence[TableRow]) -> Figure:
    """A cell for each method and criterion, coloured and named by its verdict."""
    shown = [row for row in rows if row.verdicts]
    if not shown:
        raise BadInputError("nothing to draw: no method has a finished cell")
    figure = Figure(figsize=(7.4, 1.2 + 0.42 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(shown):
        for x, name in enumerate(CRITERIA):
            item = row.verdicts[name]
            axes.add_patch(_patch(x, y, _FILL[item.verdict]))
            text = item.verdict + (" (1 seed)" if item.one_seed else "")
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8)
    axes.set_xlim(0, len(CRITERIA))
    axes.set_ylim(len(shown), 0)
    axes.set_xticks([place + 0.5 for place in range(len(CRITERIA))], [_TITLES[name] for name in CRITERIA], fontsize=8)
    axes.set_yticks([place + 0.5 for place in range(len(shown))], [row.label for row in shown], fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def ratio_sweep(rows: Sequence[TableRow], criteria: Criteria) -> Figure | None:
    """Broad and narrow figures over the ratio, one line a method, the undefended run as a level; None without two
    ratios of some method."""
    judged = [criteria.broad, criteria.narrow]
    methods = list(dict.fromkeys(row.method for row in rows if row.ratio is not None and row.figures))
    drawn = {name: [row for row in rows if row.method == name and row.figures] for name in methods}
    if not any(len(found) > 1 for found in drawn.values()):
        return None
    figure = Figure(figsize=(7.4, 6.4), layout="constrained")
    for place, criterion in enumerate(judged, 1):
        axes = figure.add_subplot(2, 1, place)
        style(axes)
        for colour, (name, found) in zip(_COLOURS * 2, drawn.items(), strict=False):
            _line(axes, found, criterion, colour, name)
        level = next((_judged(row, criterion) for row in rows if row.method == UNDEFENDED), None)
        if level is not None:
            axes.axhline(level.mean, color="black", linestyle="--", linewidth=1, label="undefended")
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xscale("log")
        ticks = sorted({100 * row.ratio for found in drawn.values() for row in found if row.ratio})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylabel(_label(criterion))
        if place == 1:
            legend_beside(axes)
    axes.set_xlabel("safe rows per task row (%)")
    return figure


def _line(axes: Axes, found: Sequence[TableRow], criterion: Criterion, colour: str, label: str) -> None:
    points = [(100 * row.ratio, item) for row in found if row.ratio and (item := _judged(row, criterion)) is not None]
    if points:
        x = [ratio for ratio, _ in points]
        axes.plot(x, [item.mean for _, item in points], marker="o", markersize=4, color=colour, label=label)
        for ratio, item in points:
            if item.low is not None and item.high is not None:
                axes.plot([ratio, ratio], [item.low, item.high], color=colour, linewidth=1, alpha=0.6)


def _bars(item: OverSeeds) -> Any:
    if item.low is None or item.high is None:
        return None
    return [[item.mean - item.low], [item.high - item.mean]]


def _patch(x: int, y: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=colour, alpha=0.75, edgecolor="none")
