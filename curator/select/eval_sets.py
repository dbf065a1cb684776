"""Named evaluation sets in the store: prompts that no chosen row may hold (the filter `contamination`).

A set is one file: `evaluations/NAME.txt` with a prompt a line, or `evaluations/NAME.jsonl` with a text, or an object
with `prompt`, `question`, `text` or `messages` (of which the user turns count) a line.
"""

from pathlib import Path
from typing import Any

import orjson

from curator.corpus.text import content_text
from curator.errors import BadInputError, MissingError
from curator.store.store import Store

FOLDER = "evaluations"
_KEYS = ("prompt", "question", "text")


def read_evaluation(store: Store, name: str) -> list[str]:
    """The prompts of a set in their order, empty ones left out.

    Raises MissingError listing the sets there are, BadInputError naming the first line that holds no prompt.
    """
    for suffix in ("txt", "jsonl"):
        path = f"{FOLDER}/{name}.{suffix}"
        if store.exists(path):
            return _prompts(store.read_bytes(path), path)
    known = sorted({item.rsplit(".", 1)[0] for item in store.list(FOLDER)})
    raise MissingError(
        f"there is no evaluation set {name!r}: put its prompts into {FOLDER}/{name}.txt of the store, one a line; "
        f"there are: {', '.join(known) or 'none yet'}",
        details=known,
    )


def read_prompts(path: Path) -> list[str]:
    """The same of a file outside a store, by its ending; raises MissingError when there is none."""
    if path.suffix not in (".txt", ".jsonl"):
        raise BadInputError(f"{path}: prompts are read from .txt (one a line) and .jsonl files")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingError(f"evaluation prompts {path} cannot be read: {error.strerror}") from error
    return _prompts(data, str(path))


def _prompts(data: bytes, path: str) -> list[str]:
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text: {error}") from error
    prompts = lines if path.endswith(".txt") else [_prompt(line, path, n) for n, line in enumerate(lines, start=1)]
    return [prompt for prompt in prompts if prompt.strip()]


def _prompt(line: str, path: str, number: int) -> str:
    if not line.strip():
        return ""
    try:
        value: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"{path}, line {number}: no JSON ({error})") from error
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for key in _KEYS:
            if isinstance(value.get(key), str):
                return str(value[key])
        turns = value.get("messages")
        if isinstance(turns, list):
            users = (turn for turn in turns if isinstance(turn, dict) and turn.get("role") == "user")
            return "\n".join(content_text(turn.get("content")) for turn in users)
    raise BadInputError(f"{path}, line {number}: neither a text nor an object with one of {', '.join(_KEYS)}, messages")
