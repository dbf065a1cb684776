"""Files of one JSON object a line: read whole, added to line by line, written whole."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from curator.errors import BadInputError
from curator.store.filesystem import atomic_write


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; raises BadInputError when it cannot be read or a line is not an object."""
    return [value for _, value in read_numbered_lines(path)]


def read_numbered_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The same with each object's line in the file, from 1."""
    try:
        lines = path.read_bytes().splitlines()
        found = [(number, orjson.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    except (OSError, orjson.JSONDecodeError) as error:
        raise BadInputError(f"{path}: not a readable JSONL file: {error}") from error
    return [(number, _object(path, number, value)) for number, value in found]


def write_lines(path: Path, rows: Iterable[object]) -> None:
    """Write or replace a file in one step, making its folder."""
    with atomic_write(path, durable=True) as temporary:
        temporary.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def read_finished_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that a killed process may have left half written; none where there is no file.

    What stands after the last line feed is cut off the file, so that appending goes on from a line's beginning. Raises
    BadInputError where a whole line is not a JSON object.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    try:
        found = [orjson.loads(line) for line in data[:end].splitlines()]
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"{path}: not a file that this command could go on with: {error}") from error
    return [_object(path, number, value) for number, value in enumerate(found, 1)]


def _object(path: Path, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInputError(f"{path}, line {number}: a JSON object was expected, found {str(value)[:40]!r}")
    return value
