"""Part files of one scorer: named by their rows, checked before they count, set aside when they are broken.

A part holds the outcome of each row (`ScoreRow`): a loss, or null with a reason; never a loss on a wrong slice. Since
the name follows from the rows, two workers on one block write one file, and `read_finished` takes each row once.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa

from curator.errors import IntegrityError, MissingError, RenderError, StoreError
from curator.messages import load_messages
from curator.scoring.engines.base import RowLoss
from curator.store.schema import SCORES
from curator.store.store import Store, arrow_schema, conform

if TYPE_CHECKING:
    from curator.render import Rendered, Renderer


MaskRule = Literal["all", "last"]


class ScoreRow(NamedTuple):
    """One row of schema.SCORES, in column order."""

    example_id: str
    status: Literal["scored", "too_long", "no_response", "failed"]
    nll_sum: float | None
    n_response_tokens: int | None
    n_tokens: int | None
    reason: str | None


def render_row(
    renderer: "Renderer", example_id: str, messages: str, mask_rule: MaskRule, window: int
) -> "Rendered | ScoreRow":
    """The rendered conversation, or the finished row of one that can have no loss.

    `messages` is canonical JSON; `window` is the most tokens a row may have. A response token at position 0
    has no logit before it and is not counted.
    """
    try:
        row = renderer.render(load_messages(messages), mask_rule)
    except RenderError as error:
        return ScoreRow(example_id, "failed", None, None, None, error.message)
    n_response = row.n_response_tokens
    if not n_response:
        return ScoreRow(example_id, "no_response", None, 0, row.n_tokens, "no response token to score")
    if row.n_tokens > window:
        reason = f"{row.n_tokens} tokens, the window is {window}"
        return ScoreRow(example_id, "too_long", None, n_response, row.n_tokens, reason)
    return row


def scored_row(example_id: str, row: "Rendered", loss: RowLoss | str) -> ScoreRow:
    """The row of a scored conversation; `failed` with the reason given, or when the model gave no finite loss."""
    if isinstance(loss, str):
        return ScoreRow(example_id, "failed", None, row.n_response_tokens, row.n_tokens, loss)
    if not math.isfinite(loss.nll_sum):
        reason = loss.reason or f"the model's loss is {loss.nll_sum}"
        return ScoreRow(example_id, "failed", None, loss.n_response_tokens, row.n_tokens, reason)
    return ScoreRow(example_id, "scored", loss.nll_sum, loss.n_response_tokens, row.n_tokens, None)


PATTERN = "part-*.parquet"
_SET_ASIDE = ".set-aside"
_STALE_S = 600.0  # writing a part takes seconds


@dataclass
class Finished:
    """What a scorer's folder holds: the ids with a row, the parts that hold them, and what was set aside."""

    ids: set[str] = field(default_factory=set)
    parts: list[dict[str, Any]] = field(default_factory=list)
    status_counts: Counter[str] = field(default_factory=Counter)
    n_tokens: int = 0
    set_aside: list[str] = field(default_factory=list)
    first_ids: dict[str, str] = field(default_factory=dict)  # a part's first row


def part_name(ids: Sequence[str]) -> str:
    """A part's file name: the hash of its ids in order, so two workers on one block write one file."""
    return f"part-{hashlib.blake2b(chr(10).join(ids).encode(), digest_size=12).hexdigest()}.parquet"


def write_part(store: Store, folder: str, rows: Sequence[ScoreRow]) -> str:
    """Write one part of scored rows in one step; returns its name."""
    name = part_name([row.example_id for row in rows])
    columns = list(zip(*rows, strict=True))
    table = pa.table(dict(zip(SCORES.names, columns, strict=True)), schema=arrow_schema(SCORES))
    store.write_table(f"{folder}/{name}", table, SCORES)
    return name


def read_finished(store: Store, folder: str, named: dict[str, str]) -> Finished:
    """Everything finished in a folder, by its listing and not by its manifest: after a crash between a part's
    rename and the manifest's, the part counts.

    `named` maps part names to the SHA-256 that the manifest recorded. A part that is not a whole Parquet file of
    the declared columns, differs from its recorded hash or its name, or repeats a row is put out of the way, and
    its rows are scored again. Two parts that share a row (workers with different samples): the later name goes.
    """
    finished = Finished()
    for name in store.list(folder, PATTERN):
        path = f"{folder}/{name}"
        try:
            sha256, table = _checked(store, path, named.get(name), finished.ids)
        except MissingError:  # a process beside us has just set it aside
            continue
        except IntegrityError as error:
            _set_aside(store, path)
            finished.set_aside.append(f"{name}: {error.message}")
            continue
        ids = table.column("example_id").to_pylist()
        finished.ids.update(ids)
        if ids:
            finished.first_ids[name] = ids[0]
        finished.status_counts.update(table.column("status").to_pylist())
        n_tokens, status = table.column("n_tokens").to_pylist(), table.column("status").to_pylist()
        finished.n_tokens += sum(n for n, kind in zip(n_tokens, status, strict=True) if kind == "scored")
        finished.parts.append({"name": name, "n_rows": table.num_rows, "sha256": sha256})
    return finished


def sweep_temporary(store: Store, folder: str) -> list[str]:
    """Remove half-written files that a killed process left in a folder on this machine; returns their names.

    A temporary name holds its writer's process id. Files of a living process and young files (a worker on another
    machine may write them) are left alone.
    """
    local = store.local_path(folder)
    if local is None or not local.is_dir():
        return []
    gone = []
    for path in sorted(local.glob(".tmp-*")):
        try:
            old = time.time() - path.stat().st_mtime > _STALE_S
            if old and not _lives(path.name.split("-")[-2]):
                path.unlink()
                gone.append(path.name)
        except OSError:  # another run sweeps too, or the folder is read-only
            continue
    return gone


def _lives(process: str) -> bool:
    return process.isdigit() and Path("/proc", process).exists()


def _checked(store: Store, path: str, recorded: str | None, seen: set[str]) -> tuple[str, pa.Table]:
    sha256 = store.sha256(path)
    if recorded is not None and sha256 != recorded:
        raise IntegrityError("its bytes are not those that scorer.json recorded")
    data = store.read_table(path)  # what cannot be fetched ends the run: it is not damaged for that
    try:
        table = conform(data, SCORES)
    except StoreError as error:
        raise IntegrityError(error.message) from error
    ids = table.column("example_id").to_pylist()
    if part_name(ids) != path.rpartition("/")[2]:
        raise IntegrityError("its rows are not those that its name stands for")
    if len(set(ids)) != len(ids):
        raise IntegrityError(f"holds {len(ids) - len(set(ids))} rows twice")
    if not seen.isdisjoint(ids):
        raise IntegrityError(f"{len(seen.intersection(ids))} of its rows stand in another part too")
    return sha256, table


def _set_aside(store: Store, path: str) -> None:
    with suppress(MissingError):  # a process beside us did it
        store.write_bytes(path + _SET_ASIDE, store.read_bytes(path))
    store.delete(path)
