"""Plots as SVG: places and sizes are worked out here, and a template writes them. Nothing here reads a row.

Each shape is a link to the rows that it stands for.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.page.text import count, figure

WIDTH = 480.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 12.0, 12.0, 42.0
MAX_GROUPS = 6  # colours of the style
N_SHADES = 6
Link = Callable[..., str]


@dataclass(frozen=True)
class Shape:
    """A rectangle with its look (a class of the style), its title and where it leads ('': nowhere)."""

    x: float
    y: float
    width: float
    height: float
    look: str
    title: str
    href: str = ""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in the drawing, its words and its value."""

    at: float
    label: str
    value: float = 0.0


@dataclass(frozen=True)
class Plot:
    """A drawing: shapes within axes. `marked` is the chosen part of the x axis, `marked_y` with it of the y axis (None:
    all of it); `diagonal` joins the corners."""

    height: float
    shapes: tuple[Shape, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str
    y_label: str
    legend: tuple[tuple[str, str], ...] = ()  # look, words
    marked: tuple[float, float] | None = None
    marked_y: tuple[float, float] | None = None
    zero: float | None = None
    diagonal: bool = False

    width: float = WIDTH
    left: float = LEFT
    top: float = TOP

    @property
    def right(self) -> float:
        """Right edge of the axes."""
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        """Lower edge of the axes."""
        return self.height - BOTTOM


def histogram(
    rows: Sequence[dict[str, Any]],
    label: str,
    link: Link,
    chosen: tuple[float | None, float | None] = (None, None),
    height: float = 300.0,
) -> Plot | None:
    """The gap by source, from `gap_histogram_by_source` under one scorer; None without rows."""
    if not rows:
        return None
    by_source: dict[str, int] = defaultdict(int)
    bins: dict[int, dict[str, Any]] = {}
    for row in rows:
        by_source[row["source"]] += row["n_rows"]
        found = bins.setdefault(row["bin"], {"low": row["low"], "high": row["high"], "n": defaultdict(int)})
        found["n"][row["source"]] += row["n_rows"]
    groups = _groups(by_source)
    most = max(sum(item["n"].values()) for item in bins.values())
    n_bins = max(bins) + 1
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    step = (right - LEFT) / max(n_bins, 1)
    y_of = scale(0.0, _nice_top(most), bottom, TOP)
    shapes = []
    for place, item in sorted(bins.items()):
        base = 0
        for look, name, members in groups:
            n_rows = sum(item["n"].get(member, 0) for member in members)
            if n_rows:
                upper, lower = y_of(base + n_rows), y_of(base)
                title = f"{name or 'rows'}: {count(n_rows)} rows from {figure(item['low'])} to {figure(item['high'])}"
                source = members[0] if len(members) == 1 and len(by_source) > 1 else None
                href = link(low=item["low"], high=item["high"], source=source)
                gap = 1.0 if step > 4 else 0.0
                x = LEFT + place * step
                shapes.append(Shape(x, upper, step - gap, max(lower - upper, 0.75), look, title, href))
                base += n_rows
    inner = _inner_range(bins, n_bins)
    x_of = scale(*inner, LEFT, right)
    x_ticks = tuple(Tick(x_of(value), plain(value), value) for value in nice_ticks(*inner, 6))
    y_ticks = tuple(Tick(y_of(value), count(value)) for value in nice_ticks(0, _nice_top(most), 4))
    legend = tuple((look, name) for look, name, _ in groups) if len(groups) > 1 else ()
    marked = None if chosen == (None, None) else _part(chosen, inner, x_of)
    zero = x_of(0.0) if inner[0] < 0 < inner[1] else None
    return Plot(height, tuple(shapes), x_ticks, y_ticks, label, "rows", legend, marked, zero=zero)


def plane(rows: Sequence[dict[str, Any]], link: Link, chosen: Mapping[str, float | None] | None = None) -> Plot | None:
    """Aligned against misaligned loss, from `loss_plane_cells` under one scorer; None without rows.

    `chosen` bounds what is marked: `aligned_low` and so on, None where there is no bound.
    """
    if not rows:
        return None
    height = WIDTH
    low = min(min(row["aligned_low"] - row["x"] * _side(row) for row in rows), rows[0]["aligned_low"])
    side = _side(rows[0])
    n_cells = max(max(row["x"], row["y"]) for row in rows) + 1
    # The queries' grid has at least so many cells; empty ones at its end are still part of the range.
    n_cells = max(n_cells, 40)
    high = low + n_cells * side
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    if side <= 0:
        return None
    x_of, y_of = scale(low, high, LEFT, right), scale(low, high, bottom, TOP)
    most = max(row["n_rows"] for row in rows)
    shapes = []
    for row in rows:
        shade = 1 + round((N_SHADES - 1) * math.log1p(row["n_rows"] - 1) / math.log1p(max(most - 1, 1)))
        edges = {"aligned": row["x"], "misaligned": row["y"]}
        asked = {
            f"{name}_{end}": None if outer else row[f"{name}_{end}"]
            for name, place in edges.items()
            for end, outer in (("low", place == 0), ("high", place == n_cells - 1))
        }
        title = (
            f"{count(row['n_rows'])} rows: aligned {figure(row['aligned_low'], 2)} to {figure(row['aligned_high'], 2)}"
            f", misaligned {figure(row['misaligned_low'], 2)} to {figure(row['misaligned_high'], 2)} nats per token"
        )
        upper = y_of(row["misaligned_high"])
        width, tall = x_of(row["aligned_high"]) - x_of(row["aligned_low"]), y_of(row["misaligned_low"]) - upper
        place = x_of(row["aligned_low"])
        shapes.append(Shape(place, upper, width, tall, f"d{min(shade, N_SHADES)}", title, link(**asked)))
    values, edge = nice_ticks(low, high, 6), (chosen or {}).get
    return Plot(
        height,
        tuple(shapes),
        tuple(Tick(x_of(value), plain(value), value) for value in values),
        tuple(Tick(y_of(value), plain(value)) for value in values),
        "aligned loss, nats per token",
        "misaligned loss, nats per token",
        (("d1", "1 row"), (f"d{N_SHADES}", f"{count(most)} rows")) if most > 1 else (),
        marked=_part((edge("aligned_low"), edge("aligned_high")), (low, high), x_of) if chosen else None,
        marked_y=_part((edge("misaligned_low"), edge("misaligned_high")), (low, high), y_of),
        diagonal=True,
    )


def _part(
    chosen: tuple[float | None, float | None], whole: tuple[float, float], place_of: Callable[[float], float]
) -> tuple[float, float]:
    """Where the chosen part of an axis begins and ends in the drawing, the smaller place first."""
    ends = (
        edge if value is None else min(max(value, whole[0]), whole[1])
        for value, edge in zip(chosen, whole, strict=True)
    )
    first, second = (place_of(value) for value in ends)
    return min(first, second), max(first, second)


def _side(row: dict[str, Any]) -> float:
    return float(row["aligned_high"] - row["aligned_low"])


def _groups(by_source: dict[str, int]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Look, name and sources of each colour: the largest sources, and one colour for all others."""
    ordered = sorted(by_source, key=lambda name: (-by_source[name], name))
    if len(ordered) <= MAX_GROUPS:
        return [(f"s{place}", name, (name,)) for place, name in enumerate(ordered)]
    named, rest = ordered[: MAX_GROUPS - 1], ordered[MAX_GROUPS - 1 :]
    groups = [(f"s{place}", name, (name,)) for place, name in enumerate(named)]
    return [*groups, (f"s{MAX_GROUPS - 1}", f"{len(rest)} others", tuple(rest))]


def _inner_range(bins: dict[int, dict[str, Any]], n_bins: int) -> tuple[float, float]:
    """Where the bins of equal width begin and end: the outermost ones reach further, to the last row."""
    inner = [item for place, item in bins.items() if 0 < place < n_bins - 1]
    if not inner:
        low, high = min(item["low"] for item in bins.values()), max(item["high"] for item in bins.values())
        return (low, high) if high > low else (low - 0.5, low + 0.5)
    place = next(place for place, item in bins.items() if item is inner[0])
    width = inner[0]["high"] - inner[0]["low"]
    low = inner[0]["low"] - place * width
    return low, low + n_bins * width


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values between `low` and `high` to places between `start` and `end`."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _nice_step(span: float, n: int) -> float:
    raw = span / max(n, 1) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)


def nice_ticks(low: float, high: float, n: int) -> list[float]:
    """About `n` round values from `low` to `high`."""
    step = _nice_step(high - low, n)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _nice_top(most: int) -> float:
    step = _nice_step(most, 4)
    return math.ceil(most / step) * step


def plain(value: float) -> str:
    """A number beside an axis: four digits."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def first_scorer(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the first aligned scorer: usually there is one."""
    listed = list(rows)
    return [row for row in listed if row["aligned_id"] == listed[0]["aligned_id"]]
