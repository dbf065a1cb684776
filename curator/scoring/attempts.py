"""A note beside a part in the making, for rows that kill the whole process (a segmentation fault, the kernel's
out-of-memory killer): what outlives the process is that it was at work here, and on which row.

The block is first scored as a whole. When a process dies in it, the next one goes row by row and notes each; a row
that kills `MAX_DEATHS` processes while it stands alone is marked. A run that is stopped from outside leaves the
same trace, so it takes that many deaths on one row, not one.
"""

from collections import Counter
from collections.abc import Sequence

from curator.scoring.parts import part_name
from curator.store import Store

MAX_DEATHS = 2  # alone; together with the first, in company, three in all
PATTERN = "attempt-*.json"


class Attempt:
    """The note of one block. `careful`: an earlier process died in it, so go row by row."""

    def __init__(self, store: Store, folder: str, ids: Sequence[str]) -> None:
        self._store = store
        stem = part_name(ids).removeprefix("part-").removesuffix(".parquet")
        self._path = f"{folder}/attempt-{stem}.json"
        self.careful = store.exists(self._path)
        note = store.read_json(self._path) if self.careful else {"row": None, "deaths": {}}
        self._deaths: Counter[str] = Counter(note["deaths"])
        if note["row"] is not None:
            self._deaths[note["row"]] += 1

    def begin(self, row: str | None = None) -> None:
        """Note that work starts: on the whole block, or on one row."""
        self._store.write_json(self._path, {"row": row, "deaths": dict(self._deaths)})

    def deadly(self, row: str) -> str | None:
        """Why a row is not tried again, or None."""
        if self._deaths[row] < MAX_DEATHS:
            return None
        return f"the process died {self._deaths[row]} times while it scored this row alone"

    def settle(self) -> None:
        """The process ends on its own, with the block not done: no row is to blame for that."""
        if self._deaths:
            self.begin()
        else:
            self._store.delete(self._path)

    def done(self) -> None:
        """The part is written."""
        self._store.delete(self._path)


def sweep(store: Store, folder: str) -> None:
    """Remove notes of blocks that are done under another cut (a sample, new rows)."""
    for name in store.list(folder, PATTERN):
        store.delete(f"{folder}/{name}")
