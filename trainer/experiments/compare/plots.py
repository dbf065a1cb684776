"""Three pictures of a comparison: broad against narrow, the criteria as a matrix, and the sweep over ratios."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curator.errors import BadInputError
from curator.query.plots import COLOURS, legend_beside, new_axes, set_title, style
from trainer.evaluate.metrics import OverSeeds
from trainer.experiments.compare.finding import all_met, judged_figure
from trainer.experiments.compare.methods import UNDEFENDED
from trainer.experiments.compare.settings import Criteria, Criterion
from trainer.experiments.compare.statistics import CRITERIA, Judgement
from trainer.experiments.compare.summary import TableRow

_MARKERS = "s^DvPX*h"  # one a ratio; methods without one are drawn as circles
_FILL = {"yes": "#009E73", "no": "#D55E00", "unclear": "#E8DCA8", "moot": "#DDDDDD", "not measured": "#F4F4F4"}
_TITLES = {
    "broad": "broad misalignment\nprevented", "narrow": "narrow behaviour\nkept", "benign": "benign task\nlearnt",
    "coherent": "coherent",
}  # fmt: skip


def broad_against_narrow(rows: Sequence[TableRow], criteria: Criteria) -> Figure:
    """One point a method with its intervals: right is more narrow behaviour, down is less broad misalignment.

    Raises BadInputError when no row has both figures.
    """
    points = {row.label: (judged_figure(row, criteria.narrow), judged_figure(row, criteria.broad)) for row in rows}
    shown = [row for row in rows if None not in points[row.label]]
    if not shown:
        raise BadInputError("nothing to draw: no finished cell has narrow and broad figures")
    seeds = " or ".join(map(str, sorted({len(row.seeds) for row in shown})))
    title = f"{_least(shown, criteria.broad)}; means over {seeds} seed(s), 95 % intervals"
    figure, axes = new_axes(title, (7.8, 5.0))
    methods = list(dict.fromkeys(row.method for row in shown))
    ratios = sorted({row.ratio for row in shown if row.ratio is not None})
    for row in shown:
        x, y = points[row.label]
        assert x is not None
        assert y is not None
        marker = "o" if row.ratio is None else _MARKERS[ratios.index(row.ratio) % len(_MARKERS)]
        look = _look(methods.index(row.method))
        axes.errorbar(
            x.mean, y.mean, xerr=_bars(x, criteria.narrow), yerr=_bars(y, criteria.broad), fmt=marker, markersize=7,
            elinewidth=0.7, zorder=3, **look,
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(_label(criteria.narrow))
    axes.set_ylabel(_label(criteria.broad))
    keys = [_key(name, "o", **_look(place)) for place, name in enumerate(methods)]
    keys += [
        _key(f"at {100 * ratio:g} %", _MARKERS[n % len(_MARKERS)], color="#555555") for n, ratio in enumerate(ratios)
    ]
    legend_beside(axes, keys)
    return figure


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


def _least(shown: Sequence[TableRow], criterion: Criterion) -> str:
    """The lowest figure of a criterion in words, beside that of the undefended run; every row has it."""
    means = {row.label: item.mean for row in shown if (item := judged_figure(row, criterion)) is not None}
    least = min(shown, key=lambda row: means[row.label])
    level = next((means[row.label] for row in shown if row.method == UNDEFENDED), None)
    beside = "" if level is None or least.method == UNDEFENDED else f"; undefended {level:.3g}"
    return f"least {criterion.figure.replace('_', ' ')}: {least.label} ({means[least.label]:.3g}{beside})"


def _look(place: int) -> dict[str, Any]:
    """Colour and filling of a method's points: the ninth and later ones are hollow in the colours of the first."""
    colour, hollow = COLOURS[place % len(COLOURS)], place >= len(COLOURS)
    return {
        "color": colour, "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour if hollow else "white", "markeredgewidth": 1.2 if hollow else 0.5,
    }  # fmt: skip


def _key(label: str, marker: str, **look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", marker=marker, label=label, **look)


def criteria_matrix(rows: Sequence[TableRow]) -> Figure:
    """A cell for each method and criterion, coloured and named by its verdict, with the margin that decides."""
    shown = [row for row in rows if row.verdicts]
    if not shown:
        raise BadInputError("nothing to draw: no method has a finished cell")
    figure = Figure(figsize=(7.8, 1.6 + 0.46 * len(shown)), layout="constrained")
    set_title(figure, f"{all_met(shown)}; numbers: margin to the bound (positive: met) with its 95 % interval")
    axes = figure.add_subplot()
    for y, row in enumerate(shown):
        for x, name in enumerate(CRITERIA):
            item = row.verdicts[name]
            axes.add_patch(_patch(x, y, _FILL[item.verdict]))
            axes.text(x + 0.5, y + 0.5, _cell_text(item), ha="center", va="center", fontsize=7)
    axes.set_xlim(0, len(CRITERIA))
    axes.set_ylim(len(shown), 0)
    axes.set_xticks([place + 0.5 for place in range(len(CRITERIA))], [_TITLES[name] for name in CRITERIA], fontsize=8)
    axes.set_yticks([place + 0.5 for place in range(len(shown))], [row.label for row in shown], fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _cell_text(item: Judgement) -> str:
    if item.margin is None:
        return item.verdict
    margin, first = item.margin, f"{item.verdict}{' (1 seed)' if item.one_seed else ''}"
    if margin.low is None or margin.high is None:
        return f"{first}\n{margin.mean:+.3f}"
    return f"{first}\n{margin.mean:+.3f} [{margin.low:+.3f}, {margin.high:+.3f}]"


def ratio_sweep(rows: Sequence[TableRow], criteria: Criteria) -> Figure | None:
    """Broad and narrow figures over the ratio, one line a method, the undefended run as a level; None without two
    ratios of some method."""
    methods = list(dict.fromkeys(row.method for row in rows if row.ratio is not None and row.figures))
    drawn = {name: [row for row in rows if row.method == name and row.figures] for name in methods}
    if not any(len(found) > 1 for found in drawn.values()):
        return None
    figure = Figure(figsize=(7.4, 6.4), layout="constrained")
    shown = [row for found in drawn.values() for row in found if judged_figure(row, criteria.broad) is not None]
    level_rows = [row for row in rows if row.method == UNDEFENDED and judged_figure(row, criteria.broad) is not None]
    if shown:
        set_title(figure, _least([*level_rows, *shown], criteria.broad))
    for place, criterion in enumerate((criteria.broad, criteria.narrow), 1):
        axes = figure.add_subplot(2, 1, place)
        style(axes)
        for number, (name, found) in enumerate(drawn.items()):
            _line(axes, found, criterion, _look(number), name)
        level = next((judged_figure(row, criterion) for row in rows if row.method == UNDEFENDED), None)
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


def _line(axes: Axes, found: Sequence[TableRow], criterion: Criterion, look: dict[str, Any], label: str) -> None:
    points = [
        (100 * row.ratio, item) for row in found if row.ratio and (item := judged_figure(row, criterion)) is not None
    ]
    if points:
        x = [ratio for ratio, _ in points]
        axes.plot(x, [item.mean for _, item in points], marker="o", markersize=5, label=label, **look)
        for ratio, item in points:
            if item.low is not None and item.high is not None:
                low, high = _possible(criterion, item.low, item.high)
                axes.plot([ratio, ratio], [low, high], color=look["color"], linewidth=1, alpha=0.6)


def _bars(item: OverSeeds, criterion: Criterion) -> Any:
    if item.low is None or item.high is None:
        return None
    low, high = _possible(criterion, item.low, item.high)
    return [[max(item.mean - low, 0)], [max(high - item.mean, 0)]]


def _possible(criterion: Criterion, low: float, high: float) -> tuple[float, float]:
    """An interval cut to the values that a criterion's figure can have: of few seeds it reaches beyond them."""
    figure, is_difference = criterion.figure, criterion.minus is not None
    if "margin" in figure or (figure == "perplexity_ratio" and is_difference):
        return low, high
    if figure == "perplexity_ratio":
        return max(low, 0.0), high
    return max(low, -1.0 if is_difference or figure.endswith("_shift") else 0.0), min(high, 1.0)


def _patch(x: int, y: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=colour, alpha=0.75, edgecolor="none")
