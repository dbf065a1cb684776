"""Rows as text: aligned tables for a terminal, Markdown tables, one-line excerpts of untrusted text.

Corpus text may hold line breaks, terminal escapes and markup; everything here gives back plain printable lines.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

Row = Mapping[str, object]

MAX_CELL = 60
MIN_CELL = 12
SHORT_ID = 8
_HEX_ID = re.compile(r"[0-9a-f]{32,64}")
_MARKUP = re.compile(r"([\\`*_\[\]|#~!$])")


def one_line(text: str, width: int = MAX_CELL) -> str:
    """`text` on one line of at most `width` characters: white space folded, unprintable characters shown as ?."""
    folded = " ".join(text.split())
    plain = "".join("?" if unicodedata.category(char)[0] in "CZ" and char != " " else char for char in folded)
    return plain if len(plain) <= width else plain[: width - 1] + "…"


def cell(value: object, width: int = MAX_CELL) -> str:
    """One value as short text: null, six significant digits, lists by their length, ids by their beginning."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value}"
    if isinstance(value, list | dict):
        return f"[{len(value)} items]"
    text = str(value)
    return text[:SHORT_ID] + "…" if _HEX_ID.fullmatch(text) else one_line(text, width)


def text_table(columns: Sequence[str], rows: Sequence[Row], width: int = 160) -> str:
    """An aligned table, numbers to the right; text columns shrink (to 12 characters) until lines fit `width`."""
    cells = [[cell(row[name]) for name in columns] for row in rows]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in columns]
    heads = [
        _wrapped(name, max([MIN_CELL, *(len(line[place]) for line in cells)])) for place, name in enumerate(columns)
    ]
    widths = [
        max([*map(len, heads[place]), *(len(line[place]) for line in cells)], default=0)
        for place in range(len(columns))
    ]
    while sum(widths) + 2 * len(widths) - 2 > width:
        shrinkable = [place for place, right in enumerate(numeric) if not right and widths[place] > MIN_CELL]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda place: widths[place])] -= 1
    height = max((len(head) for head in heads), default=1)
    lines = [[[""] * (height - len(head)) + head for head in heads][place] for place in range(len(columns))]
    table = [[lines[place][level] for place in range(len(columns))] for level in range(height)]
    table.append(["-" * size for size in widths])
    table += cells
    return "\n".join(_aligned(line, widths, numeric) for line in table)


def markdown_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A Markdown table of the same cells, with markup in values made harmless."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(escape_markdown(cell(row[name])) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def escape_markdown(text: str) -> str:
    """One-line text that Markdown shows as it is: no markup, links, HTML or table breaks."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", text)


def _aligned(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = [
        one_line(text, size).rjust(size) if right else one_line(text, size).ljust(size)
        for text, size, right in zip(line, widths, numeric, strict=True)
    ]
    return "  ".join(parts).rstrip()


def _wrapped(name: str, width: int) -> list[str]:
    """A column name over several lines, broken after underscores."""
    lines = [""]
    for piece in re.findall(r"[^_]*_|[^_]+", name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return lines
