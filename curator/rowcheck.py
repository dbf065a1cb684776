"""The row-by-row part of verifying a mix: one pass in batches, memory flat but for the safe rows' ids."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator.canonical import example_id
from curator.mixrows import row_lines
from curator.orders import Allocation, Schedule, pool_of

MAX_LISTED = 10  # rows listed for each kind of problem; the rest is counted
ORDINAL_WINDOW = 200_000  # task rows held at once while a shuffled mix is brought back into the user's order


class RowCheck:
    """Compares the rows of a mix with the order that its recipe gives; feed batches in order to `add`."""

    def __init__(self, allocation: Allocation, order: Schedule, pools: list[str]) -> None:
        self._order = order
        self._pool_of = np.array(pools, dtype=object)[pool_of(allocation.n_safe)]
        self._done = 0
        self._lines = hashlib.sha256()
        self._safe_ids: set[str] = set()
        self._found: dict[str, list[int]] = {}

    @property
    def rows_sha256(self) -> str:
        """SHA-256 of the canonical lines of the rows seen so far."""
        return self._lines.hexdigest()

    @property
    def n_rows(self) -> int:
        """Rows seen so far."""
        return self._done

    def problems(self) -> list[str]:
        """One sentence for each kind of problem, naming the first rows (0-based positions) that have it."""
        return [
            f"{what} in {len(rows)} rows, first at {', '.join(map(str, rows[:MAX_LISTED]))}"
            for what, rows in self._found.items()
        ]

    def add(self, batch: pa.RecordBatch) -> None:
        """Check the next rows."""
        for line in row_lines(batch):
            self._lines.update(line)
        expected = self._order[self._done : self._done + len(batch)]
        present = batch.slice(0, len(expected))
        self._compare(present, expected)
        self._check_ids(present, expected)
        self._done += len(batch)

    def _compare(self, batch: pa.RecordBatch, expected: Schedule) -> None:
        is_task = expected >= 0
        pools = np.full(len(expected), None, dtype=object)
        pools[~is_task] = self._pool_of[-1 - expected[~is_task]]
        columns = {
            "position": pa.array(np.arange(self._done, self._done + len(expected))),
            "origin": pa.array(np.where(is_task, "task", "safe")),
            "ordinal": pa.array(expected, mask=~is_task),
            "pool": pa.array(pools, pa.string()),
        }
        for name, wanted in columns.items():
            found = batch.column(name)
            if not found.equals(wanted):
                pairs = zip(found.to_pylist(), wanted.to_pylist(), strict=True)
                wrong = [i for i, (value, other) in enumerate(pairs) if value != other]
                self._note(f"another {name} than the order gives", wrong)

    def _check_ids(self, batch: pa.RecordBatch, expected: Schedule) -> None:
        ids, messages = batch.column("example_id").to_pylist(), batch.column("messages").to_pylist()
        wrong = [i for i, text in enumerate(messages) if example_id(text) != ids[i]]
        self._note("an example_id that does not follow from the messages", wrong)
        for i in np.flatnonzero(expected < 0).tolist():
            if ids[i] in self._safe_ids:
                self._note("a safe row that came before", [i])
            self._safe_ids.add(ids[i])

    def _note(self, what: str, rows: Iterable[int]) -> None:
        found = [self._done + int(row) for row in rows]
        if found:
            self._found.setdefault(what, []).extend(found)


def task_rows_sha256(batches: Callable[[], Iterator[pa.RecordBatch]], n_task: int, in_order: bool) -> str:
    """SHA-256 over the task rows' canonical JSON lines in the user's order.

    `batches()` starts a new pass over the mix (columns ordinal, messages). A mix that keeps the task rows' order
    needs one pass; a shuffled one needs one for each window of ordinals, so that memory stays bounded.
    """
    digest = hashlib.sha256()
    window = n_task if in_order else ORDINAL_WINDOW
    for start in range(0, n_task, window):
        held: list[tuple[int, str]] = []
        for batch in batches():
            ordinals, messages = batch.column("ordinal"), batch.column("messages")
            inside = pc.and_(pc.greater_equal(ordinals, start), pc.less(ordinals, start + window))
            rows = zip(ordinals.filter(inside).to_pylist(), messages.filter(inside).to_pylist(), strict=True)
            if in_order:
                for _, text in rows:
                    digest.update(text.encode() + b"\n")
            else:
                held.extend(rows)
        for _, text in sorted(held):
            digest.update(text.encode() + b"\n")
    return digest.hexdigest()
