"""Pictures of a scored corpus: its gap, its losses, and how far its misaligned models agree.

Functions take values and give a Figure in the style of `plots`. Losses are in nats per token, lengths in response
tokens. Rows that are `chosen` (those of a mix, or the top ones) stand out. `corpus` stands before the finding that is
the title; `title` replaces both.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from curator.errors import BadInputError
from curator.query.gaps import WHY_NULL
from curator.query.plots import (
    COLOURS,
    MAX_GROUPS,
    Floats,
    array,
    finite,
    label_text,
    legend,
    legend_beside,
    new_axes,
    set_title,
    some,
)

Numbers = npt.NDArray[np.float64]
Flags = Sequence[bool] | npt.NDArray[np.bool_]

LOG_FROM = 200  # rows of the highest bar from which single rows would be invisible beside it
WEAK = 0.1  # a rank correlation below this is not called a trend
MAX_MODELS = 24
_OTHERS, _CHOSEN = COLOURS[7], COLOURS[1]
_AXIS_NAMES = {
    "gap_rel": "gap_rel (ratio)",
    "gap_abs": "gap_abs (nats per token)",
    "gap_contrast": "gap_contrast (nats per token)",
    "sum_gap": "sum_gap (nats)",
}
# Correlations of -1 to 1 in steps of a quarter: orange where models contradict each other, blue where they agree.
_STEPS = ("#D55E00", "#E08A45", "#EDB98A", "#F8E6D6", "#DCEAF4", "#9CC6E2", "#4F9BCB", "#0072B2")


def gap_histogram(
    groups: Mapping[str, Floats], *, chosen: Floats = (), score: str = "gap_rel", corpus: str = "", title: str = "",
    bins: int = 40,
) -> Figure:  # fmt: skip
    """Histogram of a gap, one colour for each group (a source, a domain, or the whole corpus).

    Where the highest bar would hide single rows the count is on a log scale, and groups are lines, since bars that are
    stacked cannot be read there. Groups beyond the eighth are drawn together as "other". `chosen` are gaps among those
    of the groups. Raises BadInputError without any value.
    """
    merged = {name: finite(values) for name, values in _at_most(groups).items()}
    everything = some(np.concatenate([*merged.values(), np.empty(0)]), _no_row(score))
    marked = finite(chosen)
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, low + 0.5, bins + 1)
    figure, axes = new_axes(title or _named(corpus, _gap_finding(everything, marked, score)))
    colours = list(COLOURS[: len(merged)]) if len(merged) > 1 or not len(marked) else [_OTHERS]
    labels = [f"{label_text(name)} ({len(values):,})" for name, values in merged.items()]
    log = int(np.histogram(everything, edges)[0].max()) > LOG_FROM
    lines = log and len(merged) > 1
    axes.hist(
        list(merged.values()), bins=edges.tolist(), stacked=not lines, color=colours, label=labels, log=log,
        histtype="step" if lines else "bar",
    )  # fmt: skip
    if len(marked):
        axes.hist(marked, bins=edges.tolist(), color=_CHOSEN, label=f"chosen ({len(marked):,})", log=log)
    median = float(np.median(everything))
    axes.axvline(median, color="black", linewidth=1, linestyle="--", label=f"median {median:.3f}")
    axes.set_xlabel(f"{_AXIS_NAMES.get(score, score)}; right is safer")
    axes.set_ylabel("rows (log scale)" if log else "rows")
    if log:
        axes.set_ylim(bottom=0.7)  # a single row stays visible
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend_beside(axes)
    return figure


def _no_row(score: str) -> str:
    return f"no row has {score}" + (f": {WHY_NULL[score]}" if score in WHY_NULL else "")


def _gap_finding(everything: Numbers, chosen: Numbers, score: str) -> str:
    median = np.median(everything)
    if len(chosen):
        return (
            f"{len(chosen):,} of {len(everything):,} rows are chosen: their median {score} is {np.median(chosen):.3g},"
            f" that of all rows {median:.3g}"
        )
    return f"{_percent((everything > 0).mean())} of {len(everything):,} rows have {score} above 0; median {median:.3g}"


def loss_against_length(groups: Mapping[str, tuple[Floats, Floats]], *, corpus: str = "", title: str = "") -> Figure:
    """Each row's mean loss over its response length (log scale): scorer label -> (n_response_tokens, mean_nll).

    A line goes through the medians of bands of lengths (powers of two), since points of several scorers cover each
    other. Scorers beyond the eighth are drawn together as "other".
    """
    some(np.concatenate([*(array(tokens) for tokens, _ in groups.values()), np.empty(0)]), "no row has a loss")
    trends = [rho for tokens, losses in groups.values() if (rho := _spearman(tokens, losses)) is not None]
    figure, axes = new_axes(title or _named(corpus, _trend("loss", trends)))
    for (name, (tokens, losses)), colour in zip(_eight(groups).items(), COLOURS, strict=False):
        axes.scatter(array(tokens), array(losses), s=9, alpha=0.15, linewidths=0, color=colour)
        axes.plot(*_medians(array(tokens), array(losses)), color=colour, linewidth=2, label=label_text(name))
    _length_axis(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mean_nll (nats per token)")
    legend_beside(axes)
    return figure


def gap_against_length(
    tokens: Floats, gaps: Floats, chosen: Flags | None = None, *, score: str = "gap_rel", corpus: str = "",
    title: str = "",
) -> Figure:  # fmt: skip
    """Each row's gap over its response length (log scale): whether a choice by gap is one by length."""
    x, y = some(array(tokens), _no_row(score)), array(gaps)
    marked = _flags(chosen, len(x))
    finding = _trend(score, [rho for rho in [_spearman(x, y)] if rho is not None])
    if marked.any():
        finding += f"; median length {np.median(x[marked]):.0f} tokens of chosen rows, {np.median(x):.0f} of all"
    figure, axes = new_axes(title or _named(corpus, finding))
    _two_kinds(axes, x, y, marked)
    axes.axhline(0, color="black", linewidth=1, linestyle="--", label="gap 0")
    _length_axis(axes)
    axes.set_ylabel(_AXIS_NAMES.get(score, score))
    legend_beside(axes)
    return figure


def loss_plane(
    aligned: Floats, misaligned: Floats, chosen: Flags | None = None, *, corpus: str = "", title: str = ""
) -> Figure:
    """Rows in the plane of both mean losses; above the diagonal the gap is positive."""
    x, y = some(array(aligned), "no row has both losses"), array(misaligned)
    marked = _flags(chosen, len(x))
    finding = f"{_percent((y > x).mean())} of {len(x):,} rows are harder for the misaligned models (above the line)"
    if marked.any():
        finding += f", {_percent((y > x)[marked].mean())} of the chosen ones"
    figure, axes = new_axes(title or _named(corpus, finding))
    _two_kinds(axes, x, y, marked)
    top = float(max(x.max(), y.max())) * 1.05 or 1.0
    axes.plot([0, top], [0, top], color="black", linewidth=1, linestyle="--", label="gap 0")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("aligned mean_nll (nats per token)")
    axes.set_ylabel("misaligned mean_nll (nats per token)")
    legend(axes)
    return figure


def agreement_matrix(pairs: Mapping[tuple[str, str], float | None], *, corpus: str = "", title: str = "") -> Figure:
    """Rank correlation of the gap under either of two misaligned models alone, a cell for each pair.

    A pair without one (None: a gap that does not vary) is left white with a dash. Raises BadInputError without a pair,
    or with more than 24 models, whose numbers could not be read.
    """
    if not pairs:
        raise BadInputError("nothing to draw: agreement takes two misaligned scorers of one aligned one")
    names = sorted({name for pair in pairs for name in pair})
    if len(names) > MAX_MODELS:
        raise BadInputError(f"{len(names)} misaligned models are too many for one picture (at most {MAX_MODELS})")
    table = np.full((len(names), len(names)), np.nan)
    for (one, two), value in pairs.items():
        if value is not None:
            row, column = names.index(one), names.index(two)
            table[row, column] = table[column, row] = value
    size = 2.6 + 0.62 * len(names)
    figure, axes = new_axes("", (max(size + 1.2, 5.0), size))
    set_title(figure, title or _named(corpus, _agreement_finding(finite(table.ravel()))))
    shades = BoundaryNorm(np.linspace(-1, 1, len(_STEPS) + 1), len(_STEPS))
    image = axes.imshow(table, cmap=ListedColormap(_STEPS), norm=shades)
    for row in range(len(names)):
        for column in range(len(names)):
            if row != column:
                value = table[row, column]
                text = "–" if np.isnan(value) else f"{value:.2f}"
                colour = "white" if abs(value) >= 0.75 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    ticks = [label_text(name, 20) for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), ticks, fontsize=8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="Spearman correlation of gap_abs", shrink=0.8)
    return figure


def _agreement_finding(values: Numbers) -> str:
    if not len(values):
        return "no pair of misaligned models can be compared: a gap does not vary"
    low, high = float(values.min()), float(values.max())
    how = "agree" if low >= 0.5 else "contradict each other" if high < 0 else "agree only in part"
    between = f"{low:.2f}" if round(low, 2) == round(high, 2) else f"{low:.2f} to {high:.2f}"
    return f"misaligned models {how} on which rows are safe: rank correlation {between}"


def _two_kinds(axes: Axes, x: Numbers, y: Numbers, marked: npt.NDArray[np.bool_]) -> None:
    """Points of all rows in grey and those of the chosen ones over them."""
    axes.scatter(x[~marked], y[~marked], s=9, alpha=0.4, linewidths=0, color=_OTHERS, label=f"rows ({len(x):,})")
    if marked.any():
        label = f"chosen ({int(marked.sum()):,})"
        axes.scatter(x[marked], y[marked], s=16, linewidths=0, color=_CHOSEN, label=label)


def _length_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("response tokens (log scale)")


def _medians(tokens: Numbers, losses: Numbers) -> tuple[list[float], list[float]]:
    """Median length and median loss of each band of lengths."""
    bands = np.floor(np.log2(np.maximum(tokens, 1)))
    found = [(bands == band) for band in np.unique(bands)]
    return [float(np.median(tokens[rows])) for rows in found], [float(np.median(losses[rows])) for rows in found]


def _flags(chosen: Flags | None, n: int) -> npt.NDArray[np.bool_]:
    return np.zeros(n, dtype=np.bool_) if chosen is None else np.asarray(chosen, dtype=np.bool_)


def _trend(what: str, correlations: Sequence[float]) -> str:
    """In words how a value goes with length, from rank correlations (one a scorer)."""
    if not correlations:
        return f"{what} against length"
    low, high = min(correlations), max(correlations)
    between = f"{low:.2f}" if round(low, 2) == round(high, 2) else f"{low:.2f} to {high:.2f}"
    if high <= -WEAK:
        how = "falls with length"
    elif low >= WEAK:
        how = "grows with length"
    else:
        how = "hardly depends on length" if max(-low, high) < WEAK else "goes with length for some scorers"
    return f"{what} {how} (rank correlation {between})"


def _spearman(x: Floats, y: Floats) -> float | None:
    """None where one of the two does not vary, or there are fewer than three rows."""
    frame = pl.DataFrame({"x": array(x), "y": array(y)})
    if frame.height < 3:
        return None
    found = frame.select(pl.corr("x", "y", method="spearman")).item()
    return None if found is None or np.isnan(found) else float(found)


def _percent(share: float) -> str:
    """A share as a percentage that says neither none nor all of where it is not so."""
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _named(corpus: str, finding: str) -> str:
    return f"{corpus}: {finding}" if corpus else finding


def _at_most(groups: Mapping[str, Floats]) -> dict[str, Numbers]:
    """The groups by size, largest first; those that have no colour left become one."""
    by_size = sorted(groups, key=lambda name: (-len(groups[name]), name))
    if len(by_size) <= MAX_GROUPS:
        return {name: array(groups[name]) for name in by_size}
    named, rest = by_size[: MAX_GROUPS - 1], by_size[MAX_GROUPS - 1 :]
    other = np.concatenate([array(groups[name]) for name in rest])
    return {name: array(groups[name]) for name in named} | {f"other: {len(rest)}": other}


def _eight(groups: Mapping[str, tuple[Floats, Floats]]) -> dict[str, tuple[Floats, Floats]]:
    """The first groups in their order; those that have no colour left become one."""
    if len(groups) <= MAX_GROUPS:
        return dict(groups)
    names = list(groups)
    rest = [groups[name] for name in names[MAX_GROUPS - 1 :]]
    x, y = (np.concatenate([array(pair[side]) for pair in rest]) for side in (0, 1))
    return {name: groups[name] for name in names[: MAX_GROUPS - 1]} | {f"other: {len(rest)}": (x, y)}
