"""Rows that an engine cannot score: found by halving, tried again alone, and marked with a reason.

An engine's own errors and running out of memory are taken for a row's fault only while the engine still scores
another row: an engine that fails on everything ends the run instead of marking everything.

Rows that kill the whole process (a segmentation fault, the kernel's out-of-memory killer) are found by notes beside the
block (`Attempt`), which outlive the process: that it was at work here, and on which row.

The block is first scored as a whole. When a process dies in it, the next one goes row by row and notes each; a row
that kills `MAX_DEATHS` processes while it stands alone is marked. A run that is stopped from outside leaves the
same trace, so it takes that many deaths on one row, not one. Each process has a note of its own, and those of processes
that may be alive blame no row.

The notes of the living are how processes on one folder share its blocks: whoever meets a block that another began
before leaves it for the end. They are no lock: a block that two score all the same (at the end) gives one part, whose
first copy stays.
"""

import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.errors import BallastError, MissingError, ScoringError
from curator.scoring.engines.base import Engine, OnRows, RowLoss
from curator.scoring.parts import part_name
from curator.store.store import Store

if TYPE_CHECKING:
    from curator.render import Rendered


MAX_DEATHS = 2  # alone; together with the first, in company, three in all
FOLDER = "attempts"
# A note of another machine (or container) says nothing of whether its process lives: it is renewed with each row, or
# stands for one block, and none takes so long.
GONE_AFTER_S = 3_600.0
_PLACE_FILES = ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid")


class Attempt:
    """The notes of one block. `careful`: an earlier process died in it, so go row by row. `taken`: another that may be
    alive is at it."""

    def __init__(self, store: Store, folder: str, ids: Sequence[str], worker: str | None = None) -> None:
        self._store, self._worker = store, worker
        self._folder, self._stem = f"{folder}/{FOLDER}", _stem(ids)
        stem, self._name = self._stem, f"{self._stem}-{secrets.token_hex(8)}.json"
        self._path = f"{self._folder}/{self._name}"
        self._row: str | None = None
        self._deaths: Counter[str | None] = Counter()
        self._dead: list[str] = []
        self._began: float | None = None
        self.taken = False
        for name in store.list(f"{folder}/{FOLDER}", f"{stem}-*.json"):
            try:
                note = store.read_json(f"{folder}/{FOLDER}/{name}")
            except MissingError:  # its process has just ended well
                continue
            if is_gone(note["by"], note["at"]):
                self._dead.append(f"{folder}/{FOLDER}/{name}")
                self._deaths[note["row"]] += 1
            else:
                self.taken = True
        self.careful = bool(self._dead)

    def begin(self, row: str | None = None) -> None:
        """Note that work starts: on the whole block, or on one row."""
        self._row = row
        if self._began is None:
            self._began = time.time()
        self._note(this_process() | {"worker": self._worker})

    def late(self) -> bool:
        """Whether another that may be alive began this block before we did; of two in one moment, one is late."""
        ours = (self._began or 0.0, self._name)
        for name in self._store.list(self._folder, f"{self._stem}-*.json"):
            try:
                note = self._store.read_json(f"{self._folder}/{name}")
            except MissingError:
                continue
            if not is_gone(note["by"], note["at"]) and (note.get("began", note["at"]), name) < ours:
                return True
        return False

    def deadly(self, row: str) -> str | None:
        """Why a row is not tried again, or None."""
        if self._deaths[row] < MAX_DEATHS:
            return None
        return f"the process died {self._deaths[row]} times while it scored this row alone"

    def died(self) -> None:
        """The engine is dead while the process lives: count it as a death anyway."""
        self._note(None)

    def settle(self) -> None:
        """The process ends on its own, with the block not done: no row is to blame for that."""
        self._store.delete(self._path)

    def done(self) -> None:
        """The part is written."""
        for path in (self._path, *self._dead):
            self._store.delete(path)

    def _note(self, by: dict[str, Any] | None) -> None:
        self._store.write_json(self._path, {"row": self._row, "by": by, "at": time.time(), "began": self._began})


def declare_dead(store: Store, folder: str, ids: Sequence[str], worker: str) -> None:
    """Record that a worker ended while it was at a block: whoever started it knows, wherever it ran."""
    for name in store.list(f"{folder}/{FOLDER}", f"{_stem(ids)}-*.json"):
        path = f"{folder}/{FOLDER}/{name}"
        try:
            note = store.read_json(path)
        except MissingError:
            continue
        if note["by"] is not None and note["by"].get("worker") == worker:
            store.write_json(path, note | {"by": None})


def _stem(ids: Sequence[str]) -> str:
    return part_name(ids).removeprefix("part-").removesuffix(".parquet")


def sweep(store: Store, folder: str) -> None:
    """Remove notes of blocks that are done under another cut (a sample, new rows)."""
    store.delete(f"{folder}/{FOLDER}")


def this_process() -> dict[str, Any]:
    """Who notes: machine, boot and process namespace as `place`, the process id, and when it started (clock ticks
    since boot; None where the system does not tell)."""
    return {"place": _place(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(by: dict[str, Any] | None, at: float) -> bool:
    """Whether the process that noted at that time (seconds since the epoch) has surely ended.

    Here it has when its id stands for no process or for one that started at another time; elsewhere when its note is
    older than `GONE_AFTER_S`. None is a process that was declared dead.
    """
    if by is None:
        return True
    if by["place"] == _place() and by["started"] is not None:
        return bool(_started(by["pid"]) != by["started"])
    return time.time() - at > GONE_AFTER_S


def _place() -> str:
    boot, namespace = (Path(name) for name in _PLACE_FILES)
    try:
        return f"{socket.gethostname()} {boot.read_text().strip()} {namespace.readlink()}"
    except OSError:  # no Linux
        return socket.gethostname()


def _started(pid: int) -> int | None:
    """When a living process started; a dead one that nobody waited for yet counts as gone."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


_MAX_REASON = 200  # characters of an engine's message that are kept
_N_PROBE = 2  # tokens of the row that asks whether the engine lives, when none was scored before


class EngineDiedError(ScoringError):
    """The engine scored rows, met one, and now fails on those it scored before."""


class FaultTolerantEngine:
    """An engine that answers for each row with a loss, or with the reason why it has none."""

    def __init__(self, engine: Engine, on_rows: OnRows | None = None) -> None:
        self._engine, self._on_rows = engine, on_rows
        self._shortest: Rendered | None = None  # a row known to be fine
        self._reported = self._credit = 0

    def score(self, rows: "Sequence[Rendered]") -> list[RowLoss | str]:
        """One outcome for each row, in the order given.

        Errors of ours (a wrong tokenizer, a store that is gone) are raised as they are; EngineDiedError or
        ScoringError when the engine fails on other rows too.
        """
        if not rows:
            return []
        losses, reason = self._try(rows)
        if losses is not None:
            return list(losses)
        if len(rows) > 1:
            half = len(rows) // 2
            return [*self.score(rows[:half]), *self.score(rows[half:])]
        again, reason = self._try(rows)
        if again is not None:
            return list(again)
        self._require_life(rows[0], reason)
        self._report(1, rows[0].n_tokens)
        return [reason]

    def _try(self, rows: "Sequence[Rendered]") -> tuple[list[RowLoss] | None, str]:
        """Losses, or why there are none. Only the error's text is kept: its frames hold the batch's memory."""
        self._reported = 0
        try:
            losses = self._engine.score(rows, self._report)
        except BallastError:
            raise
        except Exception as error:
            self._credit += self._reported
            return None, _reason(error)
        shortest = min(rows, key=lambda row: row.n_tokens)
        if self._shortest is None or shortest.n_tokens < self._shortest.n_tokens:
            self._shortest = shortest
        return losses, ""

    def _require_life(self, row: "Rendered", reason: str) -> None:
        probe = self._shortest or _probe(row)
        try:
            self._engine.score([probe])
        except Exception as error:
            kind = EngineDiedError if self._shortest is not None else ScoringError
            raise kind(f"the engine fails on rows it should score; first {reason}, then {_reason(error)}") from None

    def _report(self, n_rows: int, n_tokens: int) -> None:
        """Pass progress on, without counting rows again that a failed call had finished."""
        self._reported += n_rows
        known = min(self._credit, n_rows)
        self._credit -= known
        if self._on_rows is not None and n_rows > known:
            self._on_rows(n_rows - known, n_tokens)


def _probe(row: "Rendered") -> "Rendered":
    """The row's first two tokens, the second of them to be scored."""
    mask = row.response_mask[:_N_PROBE].copy()
    mask[-1] = True
    return replace(row, input_ids=row.input_ids[:_N_PROBE], response_mask=mask)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    kind = (
        "out of memory" if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ else "engine error"
    )
    return f"{kind}: {type(error).__name__}: {text}"[:_MAX_REASON]
