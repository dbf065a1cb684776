"""The style of all pictures, and those of a mix, a training run and shares; `gap_plots` has those of a scored corpus.

PNG or SVG, without a display and without global state. Functions take values and give a Figure; `save` writes it, the
same bytes for the same values. A picture without a title of the caller's gets one that says what it shows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
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
MAX_TITLE = 240
SIZE_IN = (7.0, 4.2)
_MAX_PLACES = 2_000
_LETTERS_PER_INCH = 13.0  # of a title
_LABEL_INSIDE = 65.0  # a longer bar leaves no room for its label beside it


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
    axes.axhline(asked, color="black", linewidth=1, linestyle="--", label=f"requested {asked:.4g}")
    top = max(3 * asked, 1.05 * axes.get_ylim()[1] if batch_size else 0.0) or 1.0
    axes.set_ylim(-0.02 * top, top)  # points at 0 stay whole
    axes.set_xlim(0, len(safe) + 1)
    axes.set_xlabel("position in the mix (rows)")
    axes.set_ylabel("safe rows per task row")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)
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
    some(array(steps), "no training step to draw")
    figure, axes = new_axes(title)
    for (name, values), colour in zip(series.items(), colours(), strict=False):
        holes = [np.nan if value is None else float(value) for value in values]
        axes.plot(list(steps), holes, marker="o", markersize=3, linewidth=1.3, color=colour, label=label_text(name))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)
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
    steps = [line["step"] for line in kept]
    return loss_curve(steps, {n: [line.get(n) for line in kept] for n in names}, title=title or _course(kept))


def _course(lines: Sequence[Mapping[str, Any]]) -> str:
    """A training loss's first and last value in words."""
    found = [line for line in lines if line.get("loss") is not None]
    if not found:
        return ""
    first, last = found[0], found[-1]
    return (
        f"training loss {first['loss']:.3g} at step {first['step']:,}, {last['loss']:.3g} at step {last['step']:,}"
        " (nats per token)"
    )


def share_bars(labels: Sequence[str], counts: Sequence[tuple[int, int]], unit: str, *, title: str) -> Figure:
    """One bar for each share of (n, of): its percentage and its counts as text. `unit` says what is counted."""
    figure, axes = new_axes(title, (SIZE_IN[0], 1.2 + 0.55 * len(labels)))
    shares = [100 * n / of for n, of in counts]
    bars = [COLOURS[1], *[COLOURS[4]] * (len(labels) - 2), COLOURS[2]][: len(labels)]
    axes.barh(range(len(labels)), shares, color=bars, height=0.62)
    for place, (share, (n, of)) in enumerate(zip(shares, counts, strict=True)):
        _bar_text(axes, place, share, f"{share:.1f} % ({n:,} of {of:,})")
    _percent_axis(axes, [label_text(text) for text in labels], unit)
    return figure


def before_after(groups: Mapping[str, tuple[float, float]], unit: str, *, title: str = "") -> Figure:
    """Two bars for each group: a share (0 to 1) before and after. Raises BadInputError without a group."""
    if not groups:
        raise BadInputError("nothing to draw: the file has no share before and after")
    changes = [f"{name} {100 * old:.0f} % → {100 * new:.0f} %" for name, (old, new) in groups.items()]
    figure, axes = new_axes(title or f"before → after: {'; '.join(changes)}", (SIZE_IN[0], 1.4 + 0.75 * len(groups)))
    for shift, place, colour, name in ((-0.19, 0, COLOURS[7], "before"), (0.19, 1, COLOURS[0], "after")):
        shares = [100 * pair[place] for pair in groups.values()]
        axes.barh([row + shift for row in range(len(groups))], shares, height=0.34, color=colour, label=name)
        for row, share in enumerate(shares):
            _bar_text(axes, row + shift, share, f"{share:.1f} %")
    _percent_axis(axes, [label_text(name) for name in groups], unit)
    legend_beside(axes)
    return figure


def _bar_text(axes: Axes, place: float, share: float, text: str) -> None:
    inside = share > _LABEL_INSIDE
    axes.text(
        share + (-1.5 if inside else 1.5), place, text, va="center", fontsize=9,
        ha="right" if inside else "left", color="white" if inside else "black",
    )  # fmt: skip


def _percent_axis(axes: Axes, labels: Sequence[str], unit: str) -> None:
    axes.set_yticks(range(len(labels)), list(labels))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{unit} (%)")
    axes.grid(visible=False, axis="y")


def new_axes(title: str = "", size_in: tuple[float, float] = SIZE_IN) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches with one pair of axes in the style of all."""
    figure = Figure(figsize=size_in, layout="constrained")
    axes = figure.add_subplot()
    set_title(figure, title)
    style(axes)
    return figure, axes


def set_title(figure: Figure, title: str) -> None:
    """The title at the left over the whole figure, in as many lines as it takes; nothing for an empty one."""
    if title:
        lines = wrap(label_text(title, MAX_TITLE), int(figure.get_figwidth() * _LETTERS_PER_INCH))
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)


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


def legend(axes: Axes) -> None:
    """A legend where it covers least."""
    axes.legend(fontsize=8, frameon=False)


def label_text(text: str, width: int = MAX_LABEL) -> str:
    """Untrusted text as a label: one line, no TeX, and no leading underscore (which would hide it)."""
    return one_line(text, width).replace("$", r"\$").lstrip("_") or "?"


def colours() -> Iterator[str]:
    """The palette, again from its first colour after the last."""
    while True:
        yield from COLOURS


def array(values: Floats | Sequence[int]) -> npt.NDArray[np.float64]:
    """The values as float64."""
    return np.asarray(values, dtype=np.float64)


def finite(values: Floats) -> npt.NDArray[np.float64]:
    """The values that are numbers."""
    found = array(values)
    kept: npt.NDArray[np.float64] = found[np.isfinite(found)]
    return kept


def some(values: npt.NDArray[np.float64], otherwise: str) -> npt.NDArray[np.float64]:
    """The values; raises BadInputError that says why there is nothing to draw where there are none."""
    if not len(values):
        raise BadInputError(f"nothing to draw: {otherwise}")
    return values
