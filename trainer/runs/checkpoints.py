"""Checkpoints of a run: complete only with their marker, found again by step, the oldest removed."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.errors import MissingError
from curator.store.filesystem import atomic_write, flush_to_disk

FOLDER = "checkpoints"
_PREFIX, _MARKER = "checkpoint-", "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """One folder with adapter (or model), optimiser, schedule, random streams and what defences trained."""

    path: Path
    step: int  # optimiser steps finished


def complete_checkpoints(run: Path) -> list[Checkpoint]:
    """Those of a run folder that were written to their end, in the order of their steps."""
    found = [
        Checkpoint(path, int(path.name.removeprefix(_PREFIX)))
        for path in (run / FOLDER).glob(f"{_PREFIX}*")
        if path.name.removeprefix(_PREFIX).isdigit() and (path / _MARKER).exists()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def choose_checkpoint(run: Path, step: int | None) -> Checkpoint:
    """The newest, or that of a step; raises MissingError that lists the steps there are."""
    found = complete_checkpoints(run)
    if not found:
        raise MissingError(f"{run} holds no complete checkpoint to resume from; leave --resume out to start")
    if step is None:
        return found[-1]
    for checkpoint in found:
        if checkpoint.step == step:
            return checkpoint
    steps = [checkpoint.step for checkpoint in found]
    raise MissingError(f"{run} holds no checkpoint of step {step}; there are {', '.join(map(str, steps))}")


def finish_checkpoint(path: Path, document: dict[str, Any]) -> None:
    """Mark a folder as complete: its files reach the disk first, the marker comes last and in one step."""
    for item in sorted(path.iterdir()):
        if item.is_file():
            flush_to_disk(item)
    with atomic_write(path / _MARKER, durable=True) as temporary:
        temporary.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and whatever an interrupted write left."""
    kept = {checkpoint.path for checkpoint in complete_checkpoints(run)[-keep:]}
    for path in (run / FOLDER).glob(f"{_PREFIX}*"):
        if path not in kept:
            (path / _MARKER).unlink(missing_ok=True)  # first, so that a half removed one is not taken for complete
            shutil.rmtree(path, ignore_errors=True)


def drop_after(run: Path, step: int) -> None:
    """Remove checkpoints of later steps: a run that goes on from an earlier one writes them anew."""
    for checkpoint in complete_checkpoints(run):
        if checkpoint.step > step:
            (checkpoint.path / _MARKER).unlink()
            shutil.rmtree(checkpoint.path)
