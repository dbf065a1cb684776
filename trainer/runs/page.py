"""The parts that pages of results share: heading, the command that wrote them, the machine, tables."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

# An absolute path: a slash that no name, dot or slash stands before, and a folder at least.
_PLACE = re.compile(r"(?<![\w./])/(?:[^/\s,\]'\"]+/)+([^/\s,\]'\"]+)")


def without_places(text: str) -> str:
    """The text with the last part alone of absolute paths: the rest says nothing elsewhere."""
    return _PLACE.sub(r"\1", text)


def shown_command(module: str, arguments: Sequence[str]) -> str:
    """The command as typed, absolute paths shortened."""
    return shlex.join(["python", "-m", *module.split(), *map(without_places, arguments)])


def page_head(title: str, command: str, machine: Mapping[str, Any] | None = None) -> list[str]:
    """Heading, the command and its date, and what `trainer.runs.machine.describe` says of the machine."""
    date = f"{datetime.now(UTC):%Y-%m-%d}" if machine is None else machine["date"]
    lines = [f"# {title}", "", f"Written by `{command}` on {date}.", ""]
    return lines if machine is None else [*lines, machine_line(machine), ""]


def machine_line(machine: Mapping[str, Any]) -> str:
    """Processor or GPU, threads, load and versions in one line."""
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    return (
        f"Machine: {machine['device']}, {machine['cores']} cores, {machine['threads']} thread(s) used, "
        f"{machine['cpu_capability']}, {machine['dtype']}; load average {machine['load_average']} at the end (other "
        f"work ran beside it where that says so). Versions: {versions}."
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table; cells are text that is ready for a page, null an empty cell."""
    lines = [_row(columns), "|" + "---|" * len(columns)]
    return [*lines, *(_row(["" if cell is None else cell for cell in row]) for row in rows)]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
