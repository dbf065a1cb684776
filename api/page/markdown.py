"""Markdown of reports as blocks that a template writes: what our own commands write, and nothing that could run.

HTML stays text. A link leads to another report or is shown with its address; a picture is one of the report's own.
A reader of our own: libraries give HTML, which would need a sanitiser beside them, or CommonMark's nested tokens, of
which a report uses few; none is a dependency of the service. The time to read a page is bounded here, line by line.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from curator.console import unescape_markdown

MAX_BLOCKS = 5_000
_INLINE = re.compile(
    r"(?P<text>\\[!-/:-@\[-`{-~]|&(?:amp|lt|gt);)|`(?P<code>[^`\n]{1,2000})`"
    r"|\*\*(?P<strong>(?:\\.|[^*\\\n]){1,1000})\*\*|\*(?P<emphasis>(?=\S)(?:\\.|[^*\\\n]){1,1000}(?<=\S))\*"
    r"|(?P<bang>!?)\[(?P<words>(?:\\.|[^\[\]\\\n]){0,300})\]\((?P<target>[^()\s]{1,300})\)"
)
_CELLS = re.compile(r"(?<!\\)\|")
_ITEM = re.compile(r"(?:[-*]|\d{1,9}[.)]) +")
_NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?\d[\d,.]*(?![\w-])")
_RULE = re.compile(r"\|(?: *:?-+:? *\|)+ *")


@dataclass(frozen=True)
class Piece:
    """A part of a line: `kind` is text, code, strong, emphasis, link or picture. `target` of the last two is a report's
    name."""

    kind: str
    text: str
    target: str = ""


Line = tuple[Piece, ...]


@dataclass(frozen=True)
class Block:
    """A heading (with its level), paragraph, list, code or table. A table's first line is its head, `right` says which
    columns hold numbers (as its rule or its cells say); each line has its cells."""

    kind: str
    lines: tuple[Line, ...] = ()
    level: int = 0
    text: str = ""
    table: tuple[tuple[Line, ...], ...] = ()
    right: tuple[bool, ...] = ()


Locate = Callable[[str], str | None]
"""The name of the report or picture that a target in the text leads to; None for any other."""


def blocks(text: str, locate: Locate) -> list[Block]:
    """The blocks of a page, at most 5,000 of them."""
    found = []
    for block in _blocks(text.splitlines(), locate):
        found.append(block)
        if len(found) == MAX_BLOCKS:
            break
    return found


def _blocks(lines: Sequence[str], locate: Locate) -> Iterator[Block]:
    place = 0
    while place < len(lines):
        line, start = lines[place], place
        place += 1
        if not line.strip():
            continue
        if line.startswith("```"):
            while place < len(lines) and not lines[place].startswith("```"):
                place += 1
            yield Block("code", text="\n".join(lines[start + 1 : place]))
            place += 1
        elif heading := re.match(r"(#{1,6}) +(.*)", line):
            yield Block("heading", (_pieces(heading[2], locate),), level=len(heading[1]))
        elif line.startswith("    "):
            place = _end(lines, place, lambda other: other.startswith("    "))
            yield Block("code", text="\n".join(item[4:] for item in lines[start:place]))
        elif line.startswith("|") and place < len(lines) and _RULE.fullmatch(lines[place]):
            place = _end(lines, place, lambda other: other.startswith("|"))
            yield _table(lines[start:place], locate)
        elif _ITEM.match(line):
            place = _end(lines, place, lambda other: bool(_ITEM.match(other)) or other.startswith("  "))
            yield Block("list", tuple(_pieces(item, locate) for item in _items(lines[start:place])))
        else:
            place = _end(lines, place, lambda other: bool(other.strip()) and not other.startswith(("#", "|", "```")))
            yield Block("paragraph", (_pieces(" ".join(lines[start:place]), locate),))


def _end(lines: Sequence[str], place: int, belongs: Callable[[str], bool]) -> int:
    while place < len(lines) and belongs(lines[place]):
        place += 1
    return place


def _items(lines: Sequence[str]) -> Iterator[str]:
    parts: list[str] = []
    for line in lines:
        if (mark := _ITEM.match(line)) and parts:
            yield " ".join(parts)
            parts = []
        parts.append(line[mark.end() :] if mark else line.strip())
    yield " ".join(parts)


def _table(lines: Sequence[str], locate: Locate) -> Block:
    rows = [[cell.strip() for cell in _CELLS.split(line.strip().strip("|"))] for line in (lines[0], *lines[2:])]
    width = len(rows[0])
    cells = [[*row, *([""] * width)][:width] for row in rows]
    marks = [cell.strip() for cell in lines[1].strip().strip("|").split("|")]
    columns = [[row[place] for row in cells[1:] if row[place]] for place in range(width)]
    right = tuple(
        mark.endswith(":") or (bool(column) and all(_NUMBER.match(cell) for cell in column))
        for mark, column in zip([*marks, *([""] * width)][:width], columns, strict=True)
    )
    return Block("table", table=tuple(tuple(_pieces(cell, locate) for cell in row) for row in cells), right=right)


def _pieces(text: str, locate: Locate) -> Line:
    found: list[Piece] = []
    start = 0
    for match in _INLINE.finditer(text):
        if match.start() > start:
            found.append(Piece("text", text[start : match.start()]))
        start = match.end()
        found.append(_piece(match, locate))
    if start < len(text):
        found.append(Piece("text", text[start:]))
    return tuple(found)


def _piece(match: "re.Match[str]", locate: Locate) -> Piece:
    if match["code"] is not None:
        return Piece("code", match["code"])
    for kind in ("text", "strong", "emphasis"):
        if match[kind] is not None:
            return Piece(kind, unescape_markdown(match[kind]))
    words, target = unescape_markdown(match["words"]), match["target"]
    name = locate(target.partition("#")[0])
    if match["bang"]:
        return Piece("picture", words, name) if name and name.endswith(".png") else Piece("text", f"[{words}: absent]")
    if name and name.endswith(".md"):
        return Piece("link", words, name)
    return Piece("text", words if target.startswith("#") else f"{words} ({target})")
