"""The inputs of the field cases, and what several test modules ask of them."""

from pathlib import Path
from typing import Any

from curator.corpus.formats import Reject, Row, read_rows

INPUTS = Path(__file__).parent / "inputs"


def template(name: str) -> str:
    """The source of a chat template."""
    return (INPUTS / f"tmpl_{name}.jinja").read_text(encoding="utf-8")


def kept(source: str | Path, **options: Any) -> list[list[dict[str, Any]]]:
    """The conversations of a file (a name stands for one of the inputs); every record must be kept."""
    rows = list(read_rows(INPUTS / source if isinstance(source, str) else source, **options))
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.messages for row in rows if isinstance(row, Row)]


def refused(source: str | Path, **options: Any) -> list[tuple[str, str]]:
    """Code and message of the records of a file that were kept out."""
    rows = read_rows(INPUTS / source if isinstance(source, str) else source, **options)
    return [(row.code, row.message) for row in rows if isinstance(row, Reject)]
