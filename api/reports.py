"""Reports of comparisons and training runs: Markdown pages in a folder that the operator names, read and never written.

Trainer commands write a page (`compare.md`, `report.md`) with a JSON document of its name and PNG pictures beside it.
Names are paths below the folder. What lies outside of it (also through a link), is hidden or is of another kind is
answered like what is absent.
"""

import os
import posixpath
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from curator.console import unescape_markdown
from curator.errors import BadInputError, MissingError

MAX_REPORTS = 200
MAX_FOLDERS = 2_000  # looked into for them
MAX_BYTES = {".md": 2**20, ".json": 8 * 2**20, ".png": 8 * 2**20}
_HEAD_BYTES = 4_096  # in which the title is looked for
_PNG = b"\x89PNG\r\n\x1a\n"
_PICTURE = re.compile(r"!\[[^\]\n]{0,300}\]\(([^()\s]{1,300}\.png)\)")


@dataclass(frozen=True)
class Report:
    """A report in the list: its name, first heading, size in bytes and time of its last change (UTC)."""

    name: str
    title: str
    n_bytes: int
    modified_at: datetime


@dataclass(frozen=True)
class ReportDocument:
    """A whole report: its Markdown, the JSON document of its name (None without one), and names of its pictures."""

    name: str
    title: str
    text: str
    data: Any
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class ReportFolder:
    """The reports below `root`; None has none."""

    root: Path | None

    def reports(self) -> list[Report]:
        """Up to 200 reports, the newest first."""
        if self.root is None:
            return []
        found = []
        for place, (folder, folders, files) in enumerate(os.walk(self.root)):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if place >= MAX_FOLDERS:
                break
            for name in files:
                path = (Path(folder) / name).relative_to(self.root).as_posix()
                if name.endswith(".md"):
                    found += [report] if (report := self._listed(path)) is not None else []
        return sorted(found, key=lambda report: (-report.modified_at.timestamp(), report.name))[:MAX_REPORTS]

    def document(self, name: str) -> ReportDocument:
        """One report. Raises MissingError without it, BadInputError for one that is too large or no text."""
        text = self._read(name, ".md").decode(errors="replace")
        try:
            data = orjson.loads(self._read(name.removesuffix(".md") + ".json", ".json"))
        except (MissingError, BadInputError, orjson.JSONDecodeError):
            data = None
        folder = posixpath.dirname(name)
        named = dict.fromkeys(posixpath.normpath(posixpath.join(folder, target)) for target in _PICTURE.findall(text))
        pictures = tuple(picture for picture in named if self._path(picture, ".png") is not None)
        return ReportDocument(name, _title(text, name), text, data, pictures)

    def picture(self, name: str) -> bytes:
        """A PNG file below the folder. Raises MissingError without it, BadInputError for one that is too large."""
        data = self._read(name, ".png")
        if not data.startswith(_PNG):
            raise _missing()
        return data

    def has(self, name: str) -> bool:
        """Whether there is a report or a picture of this name."""
        return any(self._path(name, suffix) is not None for suffix in (".md", ".png"))

    def _read(self, name: str, suffix: str) -> bytes:
        path = self._path(name, suffix)
        if path is None:
            raise _missing()
        with path.open("rb") as file:
            data = file.read(MAX_BYTES[suffix] + 1)
        if len(data) > MAX_BYTES[suffix]:
            raise BadInputError(f"the report's {suffix} file is over {MAX_BYTES[suffix]:,} bytes: it is not shown")
        return data

    def _path(self, name: str, suffix: str) -> Path | None:
        """The file of a name; where links lead must be below the folder, in sight and of the same kind too."""
        if self.root is None or not _is_shown(name, suffix):
            return None
        try:
            path, root = (self.root / name).resolve(), self.root.resolve()
            is_below = path.is_relative_to(root) and _is_shown(path.relative_to(root).as_posix(), suffix)
            return path if is_below and path.is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            return None

    def _listed(self, name: str) -> Report | None:
        path = self._path(name, ".md")
        if path is None:
            return None
        try:
            about = path.stat()
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES).decode(errors="replace")
        except OSError:  # it went in this moment
            return None
        return Report(name, _title(head, name), about.st_size, datetime.fromtimestamp(about.st_mtime, UTC))


def _is_shown(name: str, suffix: str) -> bool:
    """Whether a path below the folder is of a kind and has no hidden part."""
    return name.endswith(suffix) and not any(not part or part.startswith(".") for part in name.split("/"))


def _title(text: str, name: str) -> str:
    found = re.search(r"^# (.{1,300})", text, re.MULTILINE)
    return unescape_markdown(found[1].strip()) if found else name


def _missing() -> MissingError:
    return MissingError("no such report: GET /v1/reports lists them")
