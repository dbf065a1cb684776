"""A plot of any answer to a statement: one column across, a numeric one up. Dots, or bars where the first is a text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.page.plots import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Plot, Shape, Tick, nice_ticks, plain, scale

HEIGHT = 320.0
DOT = 5.0
MAX_LABELS = 8  # under bars: more would run into each other
_LABEL_CHARS = 9
_LEAST_SPAN = 1e-300  # below, steps between ticks would be rounded to 0


@dataclass(frozen=True)
class AnswerPlot:
    """What is drawn of an answer: the columns that may be chosen and are, and the drawing or why there is none."""

    names: tuple[str, ...]
    numeric: tuple[str, ...]
    across: str
    up: str
    plot: Plot | None
    reason: str | None = None
    n_left_out: int = 0


def draw(answer: Mapping[str, Any], numeric: frozenset[str], across: str = "", up: str = "") -> AnswerPlot:
    """Draw an answer (`columns` and `rows` of the API). Columns that it lacks are chosen here.

    Rows without a finite number are left out and counted.
    """
    names = tuple(column["name"] for column in answer["columns"])
    numbers = tuple(name for name in names if name in numeric)
    rows: Sequence[Mapping[str, Any]] = answer["rows"]
    up = up if up in numbers else (numbers or ("",))[-1]
    across = across if across in names else _telling(rows, [name for name in names if name != up])
    if not up or not across:
        return AnswerPlot(names, numbers, across, up, None, "A plot needs two columns, one of them of numbers.")
    needed = (across, up) if across in numbers else (up,)
    fitting = [row for row in rows if all(_finite(row[name]) for name in needed)]
    if not fitting:
        return AnswerPlot(names, numbers, across, up, None, "No row has a number to draw.")
    for name in needed:
        low, high = _range([*([] if across in numbers else [0.0]), *(row[name] for row in fitting)])
        if low != high and not _LEAST_SPAN < high - low < math.inf:
            reason = f"The values of {name} are too far apart, or too close together, to be drawn."
            return AnswerPlot(names, numbers, across, up, None, reason)
    drawing = _dots(fitting, across, up) if across in numbers else _bars(fitting, across, up)
    return AnswerPlot(names, numbers, across, up, drawing, None, len(rows) - len(fitting))


def _telling(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The first column that tells all rows apart, else the one with the most values."""
    n_values = {name: len({str(row[name]) for row in rows}) for name in names}
    return max(names, key=lambda name: (n_values[name], -names.index(name)), default="")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _dots(rows: Sequence[Mapping[str, Any]], across: str, up: str) -> Plot:
    low, high = _range([row[across] for row in rows])
    bottom, top = _range([row[up] for row in rows])
    x_of, y_of = scale(low, high, LEFT + DOT, WIDTH - RIGHT - DOT), scale(bottom, top, HEIGHT - BOTTOM - DOT, TOP + DOT)
    shapes = tuple(
        Shape(
            x_of(row[across]) - DOT / 2, y_of(row[up]) - DOT / 2, DOT, DOT, "s0",
            f"{across} {plain(row[across])}, {up} {plain(row[up])}",
        )
        for row in rows
    )  # fmt: skip
    x_ticks = tuple(Tick(x_of(value), plain(value), value) for value in nice_ticks(low, high, 6))
    y_ticks = tuple(Tick(y_of(value), plain(value)) for value in nice_ticks(bottom, top, 5))
    return Plot(HEIGHT, shapes, x_ticks, y_ticks, across, up)


def _bars(rows: Sequence[Mapping[str, Any]], across: str, up: str) -> Plot:
    values = [float(row[up]) for row in rows]
    low, high = _range([0.0, *values])
    y_of = scale(low, high, HEIGHT - BOTTOM, TOP)
    step = (WIDTH - RIGHT - LEFT) / len(rows)
    gap = 2.0 if step > 6 else 0.0
    words = ["null" if row[across] is None else str(row[across]) for row in rows]
    shapes = tuple(
        Shape(
            LEFT + place * step, min(y_of(value), y_of(0.0)), step - gap, max(abs(y_of(value) - y_of(0.0)), 0.75), "s0",
            f"{word}: {up} {plain(value)}",
        )
        for place, (word, value) in enumerate(zip(words, values, strict=True))
    )  # fmt: skip
    labelled = range(0, len(rows), max(1, math.ceil(len(rows) / MAX_LABELS)))
    x_ticks = tuple(Tick(LEFT + (place + 0.5) * step, _short(words[place])) for place in labelled)
    y_ticks = tuple(Tick(y_of(value), plain(value)) for value in nice_ticks(low, high, 5))
    return Plot(HEIGHT, shapes, x_ticks, y_ticks, across, up)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _short(word: str) -> str:
    return word if len(word) <= _LABEL_CHARS else word[: _LABEL_CHARS - 1] + "…"
