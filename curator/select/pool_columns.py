"""A pool's columns and ids, in memory or in a mapped file, and the file that they are written to."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from curator.select.candidates import Rows
from curator.select.pool_frame import id_column, id_halves, id_texts

MAX_HELD_IDS = 1_000_000  # rows of a pool, up to which the texts of its ids are held
_META = "ballast.pool"


class PoolColumns:
    """A pool's columns: those of a frame in memory, or of a mapped file, of which only what is looked at is read."""

    def __init__(self, columns: pl.DataFrame | pa.Table) -> None:
        self._mapped = None if isinstance(columns, pl.DataFrame) else columns
        self._held: dict[str, pl.Series] = columns.to_dict() if isinstance(columns, pl.DataFrame) else {}

    @property
    def frame(self) -> pl.DataFrame:
        """The columns held."""
        return pl.DataFrame([*self._held.values()])

    @property
    def n_bytes(self) -> int:
        """Memory of the columns; none of those that are mapped, which the system drops when it needs the place."""
        return 0 if self._mapped is not None else int(self.frame.estimated_size())

    def __call__(self, *names: str) -> pl.DataFrame:
        """Whole columns, all rows."""
        missing = [name for name in names if name not in self._held]
        if missing:
            assert self._mapped is not None, f"a pool without {', '.join(missing)}"
            found = pl.from_arrow(self._mapped.select(missing))
            assert isinstance(found, pl.DataFrame)
            self._held.update(found.to_dict())
        return pl.DataFrame([self._held[name] for name in names])

    def at(self, rows: Rows, *names: str) -> pl.DataFrame:
        """Some rows, in their order."""
        # By index: an expression is planned first, which takes longer than to gather some rows.
        return self(*names)[rows]


@dataclass(frozen=True)
class PoolIds:
    """Ids of 128 bits, whose text is 32 hex digits; rows stand in their order."""

    columns: PoolColumns

    def texts(self, rows: Rows) -> list[str]:
        """The ids of these rows, in their order."""
        frame = self.columns.at(rows, "id_hi", "id_lo")
        return id_texts(frame["id_hi"].to_numpy(), frame["id_lo"].to_numpy())

    @property
    def column(self) -> pa.Array:
        """The ids of all rows: 40 bytes each, held of up to a million rows: every figure of a corpus reads them."""
        return self._held_column if len(self.columns("id_hi")) <= MAX_HELD_IDS else self._column()

    @cached_property
    def _held_column(self) -> pa.Array:
        return self._column()

    def _column(self) -> pa.Array:
        frame = self.columns("id_hi", "id_lo")
        return id_column(frame["id_hi"].to_numpy(), frame["id_lo"].to_numpy())

    def find(self, wanted: Collection[str]) -> Rows:
        """Rows whose id is among `wanted`, ascending."""
        halves = id_halves(list(wanted))
        high, low = (column.to_numpy() for column in self.columns("id_hi", "id_lo"))
        first, last = (np.searchsorted(high, halves[:, 0], side) for side in ("left", "right"))
        found = []
        for step in range(int((last - first).max(initial=0))):  # more than one where first halves are equal
            some = np.flatnonzero(first + step < last)
            rows = first[some] + step
            found.append(rows[low[rows] == halves[some, 1]])
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))


def write_frame(frame: pl.DataFrame, path: Path, document: Mapping[str, Any]) -> None:
    """Write a frame as one uncompressed piece, so that its columns can be mapped; `document` says what it is."""
    table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
    with pa.ipc.new_file(str(path), table.schema.with_metadata({_META: orjson.dumps(document)})) as writer:
        writer.write_table(table)


def map_frame(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """What `write_frame` wrote; raises OSError, pa.ArrowException or KeyError for anything else."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return reader.read_all(), orjson.loads((reader.schema.metadata or {})[_META.encode()])
