"""Writing a mix's rows: task rows stream past, safe rows are few and in memory, every row is hashed on the way.

A window's rows are encoded as Parquet by a thread of their own, while their lines are made and hashed and the next
window is read: none of these holds the interpreter for long.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator.console import Progress
from curator.corpus.task_set import TaskSet
from curator.errors import StoreError
from curator.mix.count_beside import Add
from curator.mix.files import json_lines
from curator.mix.manifest import FileReceipt
from curator.mix.order import Schedule
from curator.mix.row_prompts import RowPrompts
from curator.store.schema import MIX_ROWS
from curator.store.store import ROW_GROUP_ROWS, arrow_schema

# Bytes of task text in a window, of which two are held at once. A mix that keeps the task rows' order reads them once
# whatever this is, and small windows keep both threads busy; a shuffled one reads the file once for each window, so
# larger windows mean fewer passes.
WINDOW_BYTES = 4 << 20
SHUFFLE_WINDOW_BYTES = 128 << 20
GROUP_BYTES = 32 << 20  # of the task text of a row group
MAX_WINDOW_ROWS = 1 << 18
FEW_ROWS = 1_000  # of a mix whose rows are encoded sooner than a thread has started

# Texts and ids are all different: to look for repeats in them, or for their bounds, costs more than to write them.
_PLAIN = ("messages", "example_id", "original_id")
_COLUMNS = [column.name for column in MIX_ROWS.columns if column.name not in _PLAIN]
_PARQUET: dict[str, Any] = {"use_dictionary": _COLUMNS, "write_statistics": _COLUMNS}

Indices = npt.NDArray[np.int64]


class TaskCursor:
    """Rows of a task set by ascending index: reads forward, and starts over when asked to go back."""

    def __init__(self, rows: TaskSet) -> None:
        self._rows = rows
        self._rewind()

    def _rewind(self) -> None:
        self._batches = self._rows.batches()
        self._batch: pa.RecordBatch | None = None
        self._start = 0  # index of the first row of the batch at hand

    @property
    def mean_bytes(self) -> int:
        """Bytes of a row's messages, from the batch at hand (at the start, the first thousands of rows)."""
        if self._batch is None:
            self._next()
        assert self._batch is not None
        return max(1, int(self._batch.column("messages").nbytes) // max(1, len(self._batch)))

    def take(self, wanted: Indices) -> pa.Table:
        """The rows with these indices, one at least; `wanted` ascends without repeats."""
        if wanted[0] < self._start:
            self._rewind()
        pieces = []
        done = 0
        while done < len(wanted):
            if self._batch is None or wanted[done] >= self._start + len(self._batch):
                self._next()
                continue
            end = int(np.searchsorted(wanted, self._start + len(self._batch)))
            pieces.append(_at(self._batch, wanted[done:end] - self._start))
            done = end
        return pa.Table.from_batches(pieces)

    def _next(self) -> None:
        self._start += 0 if self._batch is None else len(self._batch)
        self._batch = next(self._batches, None)
        if self._batch is None:
            raise StoreError(f"the task set ends at row {self._start}, before the {self._rows.n_rows} it is to have")


def _at(batch: pa.RecordBatch, rows: Indices) -> pa.RecordBatch:
    """The rows at these ascending places; neighbours are not copied."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return batch.slice(first, len(rows))
    return batch.take(pa.array(rows))


@dataclass(frozen=True)
class Written:
    """What came out: the file's receipt and the hash of the canonical lines."""

    file: FileReceipt
    rows_sha256: str


@dataclass(frozen=True)
class MixRows:
    """What a mix's file is made of: task rows and safe rows in the order of `epochs` epochs, and inoculation prompts.

    `safe` holds the safe rows in their order (columns of `schema.MIX_ROWS` without position). `shuffled`: the order
    of the task rows is not the user's.
    """

    order: Schedule
    tasks: TaskSet
    safe: pa.Table
    shuffled: bool
    epochs: int = 1
    prompts: RowPrompts | None = None


def write_rows(target: Path, mix: MixRows, count: Add | None = None, jsonl: BinaryIO | None = None) -> Written:
    """Write a mix's Parquet file; `count` is given the rows' origins and messages, to count their tokens.

    The canonical lines, which are hashed in any case, also go to `jsonl` where one is given. The caller makes both
    files durable. Memory stays within two windows of task rows, the safe rows and the schedule (8 bytes a row).
    """
    order, epochs = mix.order, mix.epochs
    cursor = TaskCursor(mix.tasks)
    lines = hashlib.sha256()
    schema = arrow_schema(MIX_ROWS)
    window_bytes = SHUFFLE_WINDOW_BYTES if mix.shuffled else WINDOW_BYTES
    widest_bytes = mix.tasks.widest_bytes
    group = _group_rows(widest_bytes)
    mean_bytes = cursor.mean_bytes if group == ROW_GROUP_ROWS else widest_bytes
    window = max(1, min(MAX_WINDOW_ROWS, window_bytes // mean_bytes) // group) * group
    with (
        pq.ParquetWriter(target, schema, compression="zstd", **_PARQUET) as writer,
        ThreadPoolExecutor(1) as encoder,
        Progress(len(order), "rows", "mixing") as bar,
    ):
        encoded: Future[None] | None = None
        for start, end in _windows(len(order), len(order) // epochs, window):
            rows = _window(order[start:end], start, cursor, mix.safe, mix.prompts)
            if epochs > 1:
                rows = _with_epoch(rows, 1 + start // (len(order) // epochs))
            if encoded is not None:
                encoded.result()
            if len(order) <= FEW_ROWS:
                writer.write_table(rows, row_group_size=group)
            else:
                encoded = encoder.submit(writer.write_table, rows, row_group_size=group)
            for piece in rows.to_batches(max_chunksize=group):
                _account(piece, lines, count, jsonl)
                bar.advance(len(piece))
        if encoded is not None:
            encoded.result()
    return Written(_file_receipt(target, len(order)), lines.hexdigest())


def _windows(n_rows: int, n_epoch_rows: int, window: int) -> Iterator[tuple[int, int]]:
    """Stretches of rows; none spans two epochs, so that no task row is in one twice."""
    for epoch in range(0, n_rows, n_epoch_rows):
        for start in range(epoch, epoch + n_epoch_rows, window):
            yield start, min(start + window, epoch + n_epoch_rows)


def _account(rows: pa.RecordBatch, lines: "hashlib._Hash", count: Add | None, jsonl: BinaryIO | None) -> None:
    """Hash the rows' lines, write them where requested, and count their tokens."""
    text = json_lines(rows)
    lines.update(text)
    if jsonl is not None:
        jsonl.write(text)
    if count is not None:
        count(rows["origin"].to_pylist(), rows["messages"].to_pylist())


def _group_rows(widest_bytes: int) -> int:
    """Rows of a row group: fewer than usual where those would hold more than `GROUP_BYTES`."""
    return max(1, min(ROW_GROUP_ROWS, GROUP_BYTES // max(1, widest_bytes)))


def _window(order: Schedule, start: int, cursor: TaskCursor, safe: pa.Table, prompts: RowPrompts | None) -> pa.Table:
    """Rows `start` to `start + len(order)` of the mix."""
    schema = arrow_schema(MIX_ROWS)
    task_at, safe_at = np.flatnonzero(order >= 0), np.flatnonzero(order < 0)
    by_index = task_at[np.argsort(order[task_at])]
    parts = [safe.take(pa.array(-1 - order[safe_at]))]
    if len(task_at):
        parts.append(_as_mix_rows(cursor.take(order[by_index])))
    places = np.concatenate([safe_at, by_index])
    mixed = pa.concat_tables(parts, promote_options="default").take(pa.array(np.argsort(places)))
    positions = np.arange(start, start + len(order), dtype=np.int64)
    columns = {name: mixed[name] for name in mixed.column_names} | {"position": pa.array(positions)}
    if prompts is not None:
        columns |= prompts.put_in(mixed, order)
    return pa.Table.from_arrays(
        [columns[field.name] if field.name in columns else _nulls(mixed, field) for field in schema], schema=schema
    )


def _with_epoch(rows: pa.Table, epoch: int) -> pa.Table:
    field = rows.schema.field("epoch")
    return rows.set_column(rows.schema.get_field_index("epoch"), field, pa.array([epoch] * len(rows), field.type))


def _as_mix_rows(rows: pa.Table) -> pa.Table:
    return rows.append_column("origin", pa.array(["task"] * len(rows), pa.string()))


def _nulls(rows: pa.Table, field: pa.Field) -> pa.Array:
    return pa.nulls(len(rows), field.type)


def _file_receipt(path: Path, n_rows: int) -> FileReceipt:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileReceipt(name=path.name, sha256=digest, bytes=path.stat().st_size, n_rows=n_rows)
