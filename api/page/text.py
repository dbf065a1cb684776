"""Numbers and texts as people read them. Texts of users stay texts: markup is escaped, hidden characters are shown."""

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

from curator.corpus.text import content_text

MAX_SHOWN_CHARS = 40_000  # of one turn on a page
_PLAIN_CONTROLS = "\n\t"


def count(value: int | float | None) -> str:
    """A count with its thousands set apart; a dash where there is none."""
    return "–" if value is None else f"{value:,.0f}"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction as per cent; a dash where there is none."""
    return "–" if share is None else f"{share * 100:.{digits}f} %"


def moment(value: Any) -> str:
    """A time in UTC, to the second; a dash where there is none."""
    if value is None:
        return "–"
    found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return found.strftime("%Y-%m-%d %H:%M:%S UTC")


def clipped(value: str | None, most: int = 160) -> Markup:
    """The beginning of a text on one line, ready for HTML."""
    line = " ".join((value or "").split())
    return shown(line if len(line) <= most else line[: most - 1] + "…")


def shown(value: str | None, most: int = MAX_SHOWN_CHARS) -> Markup:
    """A text ready for HTML: characters that steer or hide text are named instead of obeyed; what is cut is counted."""
    whole = value or ""
    cut = whole[:most]
    pieces: list[str] = []
    start = 0
    for place, character in enumerate(cut):
        if _steers(character):
            pieces.append(str(escape(cut[start:place])))
            pieces.append(f'<span class="hidden-char">U+{ord(character):04X}</span>')
            start = place + 1
    pieces.append(str(escape(cut[start:])))
    if len(whole) > most:
        pieces.append(f'<span class="cut">… {len(whole) - most:,} more characters, which the API gives</span>')
    return Markup("".join(pieces))


def exchange(turns: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A conversation as a line to read: what was asked first, and what was answered last."""
    asked = next((turn for turn in turns if turn["role"] == "user"), turns[0])
    answer = next((turn for turn in reversed(turns) if turn["role"] == "assistant"), turns[-1])
    return {"asked": content_text(asked.get("content")), "answer": content_text(answer.get("content"))}


def _steers(character: str) -> bool:
    """Whether a character is a control, a mark of direction or without width. Joiners of letters and emoji are not."""
    if character < "\x7f":
        return character < " " and character not in _PLAIN_CONTROLS
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") and character not in "\u200c\u200d"


def detail(item: Any) -> str:
    """One item of an error's details in a line."""
    if not isinstance(item, Mapping):
        return str(item)
    place = [f"{name} {item[name]}" for name in ("record", "line") if item.get(name) is not None]
    place += [str(item["pointer"])] if item.get("pointer") else []
    said = " ".join(str(item[name]) for name in ("code", "message") if item.get(name))
    return f"{', '.join(place)}: {said}" if place and said else said or str(dict(item))
