"""What pages of results share: their order (finding first, command last), the machine, tables."""

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


def results_page(title: str, finding: str, body: Iterable[str], command: Iterable[str]) -> str:
    """A page of results: title, the finding as one sentence in bold, the body's lines, and last how it was made."""
    return "\n".join([f"# {title}", "", f"**{finding}**", "", *body, *command_section(command)]) + "\n"


def command_section(lines: Iterable[str]) -> list[str]:
    """The last section of a page: the lines that say by which command and on which machine it was written."""
    return ["## Command", "", *lines]


def written_by(command: str, machine: Mapping[str, Any] | None = None) -> list[str]:
    """The command and its date, and what `trainer.runs.machine.describe` says of the machine."""
    date = f"{datetime.now(UTC):%Y-%m-%d}" if machine is None else machine["date"]
    wrote = f"Written by `{command}` on {date}."
    return [wrote] if machine is None else [wrote, "", machine_line(machine)]


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
