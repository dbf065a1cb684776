"""Pictures of losses and gaps as PNG or SVG, without a display and without global state.

Functions take values and give a Figure; `save` writes it, the same bytes for the same values. Losses are in
nats per token, lengths in response tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curator.console import one_line
from curator.errors import BadInputError, MissingDependencyError
from curator.store.filesystem import atomic_write

try:
    from matplotlib import rc_context
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise MissingDependencyError(f"pictures need {error.name}: pip install 'ballast-mix[plot]'") from error

Floats = Sequence[float] | npt.NDArray[np.float64]

FORMATS = (".png", ".svg")
# Okabe and Ito's palette: distinguished by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MAX_GROUPS = len(COLOURS)
MAX_LABEL = 32
SIZE_IN = (7.0, 4.2)
_MAX_PLACES = 2_000
_AXIS_NAMES = {
    "gap_rel": "gap_rel (ratio)",
    "gap_abs": "gap_abs (nats per token)",
    "gap_contrast": "gap_contrast (nats per token)",
    "sum_gap": "sum_gap (nats)",
}


def gap_histogram(groups: Mapping[str, Floats], *, score: str = "gap_rel", title: str = "", bins: int = 40) -> Figure:
    """Histogram of a gap, one colour for each group (a source, a domain, or the whole corpus), stacked.

    Groups beyond the eighth are drawn together as "other". Raises BadInputError without any value.
    """
    merged = {name: _finite(values) for name, values in _at_most(groups).items()}
    everything = _some(np.concatenate([*merged.values(), np.empty(0)]), f"no row has {score}")
    figure, axes = new_axes(title)
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, low + 0.5, bins + 1)
    colours = list(COLOURS[: len(merged)])
    labels = [f"{_label(name)} ({len(values):,})" for name, values in merged.items()]
    axes.hist(list(merged.values()), bins=edges.tolist(), stacked=True, color=colours, label=labels)
    median = float(np.median(everything))
    axes.axvline(median, color="black", linewidth=1, linestyle="--", label=f"median {median:.3f}")
    axes.set_xlabel(_AXIS_NAMES.get(score, score))
    axes.set_ylabel("rows")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def loss_against_length(groups: Mapping[str, tuple[Floats, Floats]], *, title: str = "") -> Figure:
    """Each row's mean loss over its response length (log scale): scorer label -> (n_response_tokens, mean_nll)."""
    _some(np.concatenate([*(_array(tokens) for tokens, _ in groups.values()), np.empty(0)]), "no row has a loss")
    figure, axes = new_axes(title)
    for (name, (tokens, losses)), colour in zip(groups.items(), _cycle(), strict=False):
        axes.scatter(_array(tokens), _array(losses), s=9, alpha=0.5, linewidths=0, color=colour, label=_label(name))
    axes.set_xscale("log")
    axes.set_xlabel("response tokens")
    axes.set_ylabel("mean_nll (nats per token)")
    _legend(axes)
    return figure


def loss_plane(
    aligned: Floats,
    misaligned: Floats,
    selected: Sequence[bool] | npt.NDArray[np.bool_] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Rows in the plane of both mean losses; above the diagonal the gap is positive. `selected` stand out."""
    x, y = _some(_array(aligned), "no row has both losses"), _array(misaligned)
    chosen = np.zeros(len(x), dtype=np.bool_) if selected is None else np.asarray(selected, dtype=np.bool_)
    figure, axes = new_axes(title)
    axes.scatter(x[~chosen], y[~chosen], s=9, alpha=0.4, linewidths=0, color=COLOURS[7], label=f"rows ({len(x):,})")
    if chosen.any():
        axes.scatter(
            x[chosen], y[chosen], s=16, linewidths=0, color=COLOURS[1], label=f"selected ({int(chosen.sum()):,})"
        )
    top = float(max(x.max(), y.max())) * 1.05 or 1.0
    axes.plot([0, top], [0, top], color="black", linewidth=1, linestyle="--", label="gap 0")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("aligned mean_nll (nats per token)")
    axes.set_ylabel("misaligned mean_nll (nats per token)")
    _legend(axes)
    return figure


def ratio_over_position(
    is_safe: Sequence[bool] | npt.NDArray[np.bool_],
    asked: float,
    *,
    epochs: int = 1,
    batch_size: int | None = None,
    title: str = "",
) -> Figure:
    """Safe rows per task row over the rows of a mix: in the epoch so far, against the requested ratio.

    With `batch_size` also each batch's own ratio, as a trainer of that batch size meets it. Of long mixes about
    2,000 places are drawn, evenly spread. Raises BadInputError for a mix without task rows.
    """
    safe = np.asarray(is_safe, dtype=np.bool_)
    if not len(safe) or safe.all():
        raise BadInputError("nothing to draw: the mix has no task row")
    figure, axes = new_axes(title)
    if batch_size is not None:
        _batch_ratios(axes, safe, batch_size)
    length = len(safe) // epochs
    for epoch, rows in enumerate(safe.reshape(epochs, length)):
        n_task = np.cumsum(~rows)
        places = np.unique(np.linspace(0, length - 1, min(length, _MAX_PLACES)).astype(np.int64))
        places = places[n_task[places] > 0]
        ratio = (places + 1 - n_task[places]) / n_task[places]
        label = "in the epoch so far" if epoch == 0 else None
        axes.plot(epoch * length + places + 1, ratio, color=COLOURS[0], linewidth=1.3, label=label)
        if epoch:
            axes.axvline(epoch * length + 0.5, color=COLOURS[7], linewidth=0.8, linestyle=":")
    axes.axhline(asked, color="black", linewidth=1, linestyle="--", label=f"asked {asked:.4g}")
    top = max(3 * asked, 1.05 * axes.get_ylim()[1] if batch_size else 0.0) or 1.0
    axes.set_ylim(-0.02 * top, top)  # points at 0 stay whole
    axes.set_xlim(0, len(safe) + 1)
    axes.set_xlabel("position in the mix (rows)")
    axes.set_ylabel("safe rows per task row")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def _batch_ratios(axes: Axes, safe: npt.NDArray[np.bool_], batch_size: int) -> None:
    starts = np.arange(0, len(safe), batch_size)
    n_safe = np.add.reduceat(safe.astype(np.int64), starts)
    n_rows = np.diff(np.append(starts, len(safe)))
    shown = starts[:: max(1, len(starts) // _MAX_PLACES)] // batch_size
    shown = shown[n_rows[shown] > n_safe[shown]]
    ratio = n_safe[shown] / (n_rows[shown] - n_safe[shown])
    middle = starts[shown] + (n_rows[shown] + 1) / 2
    label = f"batches of {batch_size}"
    axes.scatter(middle, ratio, s=9, alpha=0.6, linewidths=0, color=COLOURS[1], label=label)


def loss_curve(
    steps: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    *,
    title: str = "",
    unit: str = "loss (nats per token)",
) -> Figure:
    """Training losses over optimiser steps; a None leaves a hole in its line. `unit` labels the values."""
    _some(_array(steps), "no training step to draw")
    figure, axes = new_axes(title)
    for (name, values), colour in zip(series.items(), _cycle(), strict=False):
        holes = [np.nan if value is None else float(value) for value in values]
        axes.plot(list(steps), holes, marker="o", markersize=3, linewidth=1.3, color=colour, label=_label(name))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def loss_curve_of(metrics: Path, *, title: str = "") -> Figure:
    """The loss curve of a run's metrics.jsonl: every field named `loss` or ending in `_loss` of lines with a step.

    Raises BadInputError on a missing or broken file.
    """
    try:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise BadInputError(f"{metrics} {why}: give a training run's folder or its metrics.jsonl") from error
    except ValueError as error:
        raise BadInputError(f"{metrics}: no readable metrics ({error})") from error
    logged: list[dict[str, Any]] = [line for line in lines if isinstance(line, dict) and "step" in line]
    names = sorted(
        {n for line in logged for n in line if n == "loss" or n.endswith("_loss")}, key=lambda n: (n != "loss", n)
    )
    kept = [line for line in logged if any(line.get(name) is not None for name in names)]
    return loss_curve([line["step"] for line in kept], {n: [line.get(n) for line in kept] for n in names}, title=title)


def new_axes(title: str = "", size_in: tuple[float, float] = SIZE_IN) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches with one pair of axes in the style of all."""
    figure = Figure(figsize=size_in, layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(_label(title, 80), fontsize=10)
    style(axes)
    return figure, axes


def style(axes: Axes) -> None:
    """A faint grid behind the data, and no frame above and on the right."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_beside(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    """A legend on the right of the axes, never over points."""
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG or SVG by the file's ending, whole or not at all; raises BadInputError on another."""
    if path.suffix.lower() not in FORMATS:
        raise BadInputError(f"cannot draw {path.name!r}: the name must end in {' or '.join(FORMATS)}")
    kind = path.suffix.lower()[1:]
    # Neither date nor version nor random ids: equal values give equal bytes.
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    # Not durable: a picture can be drawn again.
    with atomic_write(path, durable=False) as temporary, rc_context({"svg.hashsalt": "ballast"}):
        figure.savefig(temporary, format=kind, dpi=120, metadata=metadata)


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=8, frameon=False)


def _label(text: str, width: int = MAX_LABEL) -> str:
    """Untrusted text as a label: one line, no TeX, and no leading underscore (which would hide it)."""
    return one_line(text, width).replace("$", r"\$").lstrip("_") or "?"


def _cycle() -> Iterator[str]:
    while True:
        yield from COLOURS


def _at_most(groups: Mapping[str, Floats]) -> dict[str, npt.NDArray[np.float64]]:
    """The groups by size, largest first; those that have no colour left become one."""
    by_size = sorted(groups, key=lambda name: (-len(groups[name]), name))
    if len(by_size) <= MAX_GROUPS:
        return {name: _array(groups[name]) for name in by_size}
    named, rest = by_size[: MAX_GROUPS - 1], by_size[MAX_GROUPS - 1 :]
    other = np.concatenate([_array(groups[name]) for name in rest])
    return {name: _array(groups[name]) for name in named} | {f"other: {len(rest)}": other}


def _array(values: Floats | Sequence[int]) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _finite(values: Floats) -> npt.NDArray[np.float64]:
    array = _array(values)
    kept: npt.NDArray[np.float64] = array[np.isfinite(array)]
    return kept


def _some(values: npt.NDArray[np.float64], otherwise: str) -> npt.NDArray[np.float64]:
    if not len(values):
        raise BadInputError(f"nothing to draw: {otherwise}")
    return values
