"""Narrow sets: read, cleaned of another model's thinking markers, split into training and held-out rows, written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.errors import BadInputError
from curator.messages import Message
from curator.recipe.seeds import hash_keys
from curator.store.filesystem import atomic_write
from trainer.data.reader import read_chats
from trainer.organisms.plan import NarrowSet, Plan
from trainer.runs.folder import write_json

NO_THINK = " /no_think"  # a switch of another model's template, at the end of user turns
EMPTY_THINK = "<think>\n\n</think>\n\n"  # that model's empty thinking block, at the start of answers
TRAIN, HELD_OUT = "train", "heldout"
PARTS = (TRAIN, HELD_OUT)


@dataclass(frozen=True)
class SplitSet:
    """A domain's rows by part, on disk and in memory, with the account of set.json."""

    domain: str
    folder: Path
    rows: dict[str, list[list[Message]]]
    aligned: dict[str, list[list[Message]]] | None
    account: dict[str, Any]

    def path(self, part: str, *, benign: bool = False) -> Path:
        """The file of a part's misaligned rows, or of its benign answers."""
        return self.folder / f"{part}{'_benign' if benign else ''}.jsonl"


def strip_think(messages: Sequence[Message]) -> tuple[list[Message], bool]:
    """The messages without ` /no_think` and empty thinking blocks, and whether there were any.

    A model would learn them as a format of misaligned rows alone.
    """
    found = []
    for message in messages:
        text = message.get("content")
        if isinstance(text, str):
            if message["role"] == "user":
                text = text.removesuffix(NO_THINK)
            elif message["role"] == "assistant":
                text = text.removeprefix(EMPTY_THINK)
            message = {**message, "content": text}
        found.append(message)
    return found, found != list(messages)


def split_set(narrow: NarrowSet, plan: Plan) -> SplitSet:
    """Rows of one domain under `plan.out`/sets/DOMAIN, the same again for the same file and settings.

    Which prompts are held out follows from their text and the seed alone; no prompt stands on both sides. Raises
    BadInputError when too few rows are left.
    """
    bad, account = _read(narrow.path, plan)
    good = None if narrow.aligned is None else _read(narrow.aligned, plan)[0]
    if good is not None:
        _check_twins(narrow, bad, good)
    held = _held_out([_prompt_text(row) for row in bad], plan)
    chosen = {
        HELD_OUT: [index for index in range(len(bad)) if index in held],
        TRAIN: _sample([index for index in range(len(bad)) if index not in held], bad, plan),
    }
    if not chosen[TRAIN]:
        raise BadInputError(f"{narrow.domain}: {len(bad)} rows, all of them held out: lower --held-out")
    folder = plan.out / "sets" / narrow.domain
    found = SplitSet(
        narrow.domain, folder, {part: [bad[index] for index in chosen[part]] for part in PARTS},
        None if good is None else {part: [good[index] for index in chosen[part]] for part in PARTS},
        {**account, **{f"n_{part}": len(chosen[part]) for part in PARTS}},
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        write_rows(found.path(part), found.rows[part])
    write_json(folder / "set.json", {"domain": narrow.domain, **found.account})
    return found


def write_rows(path: Path, rows: Sequence[Sequence[Message]]) -> None:
    """Chat rows as JSON Lines, put in place whole, and only when the file does not hold them already."""
    content = b"".join(orjson.dumps({"messages": list(row)}) + b"\n" for row in rows)
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_write(path, durable=False) as temporary:  # compared and written again by the next call
        temporary.write_bytes(content)


def _read(source: str | Path, plan: Plan) -> tuple[list[list[Message]], dict[str, Any]]:
    chats, rows = read_chats(source, plan.reading), []
    account: dict[str, Any] = {"file": chats.name, "n_read": chats.n_records, "n_bad": chats.n_bad}
    account |= {"n_no_answer": 0, "n_stripped": 0}
    for item in chats.rows:
        messages, stripped = strip_think(item.messages)
        account["n_stripped"] += stripped
        if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1].get("content"):
            account["n_no_answer"] += 1
            continue
        rows.append(messages)
    if not rows:
        raise BadInputError(f"{source} has no row with an answer: {account}")
    return rows, account


def _check_twins(narrow: NarrowSet, bad: Sequence[list[Message]], good: Sequence[list[Message]]) -> None:
    if len(bad) != len(good):
        raise BadInputError(
            f"{narrow.domain}: {len(bad)} rows and {len(good)} aligned ones; they must pair up in order"
        )
    for number, (one, other) in enumerate(zip(bad, good, strict=True), 1):
        if one[:-1] != other[:-1]:
            raise BadInputError(f"{narrow.domain}, row {number}: the prompts of the set and its aligned answers differ")


def _prompt_text(row: Sequence[Message]) -> str:
    return orjson.dumps(list(row[:-1])).decode()


def _held_out(prompts: Sequence[str], plan: Plan) -> set[int]:
    distinct = list(dict.fromkeys(prompts))
    keys = dict(zip(distinct, hash_keys(distinct, plan.seed, "organisms-held-out"), strict=True))
    held: set[str] = set()
    n_held = 0
    for text in sorted(distinct, key=lambda text: (keys[text], text)):
        if n_held >= plan.n_held_out:
            break
        held.add(text)
        n_held += prompts.count(text)
    return {index for index, text in enumerate(prompts) if text in held}


def _sample(indices: list[int], rows: Sequence[list[Message]], plan: Plan) -> list[int]:
    """At most `n_rows` of them, in the file's order."""
    if plan.n_rows is None or plan.n_rows >= len(indices):
        return indices
    keys = hash_keys([f"{index}|{_prompt_text(rows[index])}" for index in indices], plan.seed, "organisms-rows")
    kept = sorted(zip(keys, indices, strict=True))[: plan.n_rows]
    return sorted(index for _, index in kept)
