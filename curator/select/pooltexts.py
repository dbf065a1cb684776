"""Messages of a pool's rows on demand, for filters and strategies that read texts."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.corpus.manifest import read_corpus
from curator.errors import IntegrityError
from curator.select.columns import HashIds, Indices
from curator.store.filesystem import reading_parquet
from curator.store.store import Store

_PIECE_ROWS = 8_192


class PoolTexts:
    """`texts(rows)` gives canonical JSON by place in `ids`; the corpus is read once, when first asked.

    Memory: the corpus's text, uncompressed, for as long as the object lives.
    """

    def __init__(self, store: Store, corpus: str, revision: str, ids: HashIds) -> None:
        self._store, self._corpus, self._revision, self._ids = store, corpus, revision, ids
        self._texts: pa.ChunkedArray | None = None

    def __call__(self, rows: Indices) -> list[str]:
        """The texts of these rows; raises IntegrityError when the corpus lacks one of the ids."""
        if self._texts is None:
            self._texts = self._read(0, len(self._ids))
        texts: list[str] = self._texts.take(pa.array(rows)).to_pylist()
        return texts

    def read_once(self, start: int, end: int) -> Iterator[list[str]]:
        """The texts of the rows from `start` to `end`, piece by piece, read for this call and not kept."""
        texts = self._read(start, end)
        for place in range(0, end - start, _PIECE_ROWS):
            yield texts.slice(place, _PIECE_ROWS).to_pylist()

    def _read(self, start: int, end: int) -> pa.ChunkedArray:
        rows, pieces = [np.zeros(0, np.int64)], []
        for part in read_corpus(self._store, self._corpus, self._revision).parts:
            for table in self._groups(part):
                found = self._ids.rows_of(table["example_id"].to_pylist())
                inside = np.flatnonzero((found >= start) & (found < end))
                rows.append(found[inside])
                pieces.append(table["messages"].take(pa.array(inside)))
        order = np.argsort(np.concatenate(rows))
        if len(order) != end - start:
            raise IntegrityError(f"corpus {self._corpus} lacks the messages of {end - start - len(order)} of its rows")
        # 64-bit offsets: the texts of a large corpus pass 2 GiB.
        texts = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pa.string())
        return texts.cast(pa.large_string()).combine_chunks().take(pa.array(order))

    def _groups(self, part: str) -> Iterator[pa.Table]:
        with reading_parquet(part, self._store.base), self._store.open_file(part) as file:
            groups = pq.ParquetFile(file)
            for group in range(groups.num_row_groups):
                yield groups.read_row_group(group, ["example_id", "messages"])
