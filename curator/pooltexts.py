"""Messages of a pool's rows on demand, for filters and strategies that read texts."""

from collections.abc import Sequence

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.errors import IntegrityError
from curator.filters import Indices
from curator.snapshot import read_corpus
from curator.store import Store


class PoolTexts:
    """`texts(indices)` gives canonical JSON by place in `ids`; the corpus is read once, when first asked.

    Memory: the corpus's text, uncompressed, for as long as the object lives.
    """

    def __init__(self, store: Store, corpus: str, revision: str, ids: Sequence[str]) -> None:
        self._store, self._corpus, self._revision, self._ids = store, corpus, revision, ids
        self._texts: pa.ChunkedArray | None = None

    def __call__(self, rows: Indices) -> list[str]:
        """The texts of these rows; raises IntegrityError when the corpus lacks one of the ids."""
        if self._texts is None:
            self._texts = self._read()
        texts: list[str] = self._texts.take(pa.array(rows)).to_pylist()
        return texts

    def _read(self) -> pa.ChunkedArray:
        tables = []
        for part in read_corpus(self._store, self._corpus, self._revision).parts:
            with fsspec.open(self._store.url(part), "rb") as file:
                tables.append(pq.ParquetFile(file).read(["example_id", "messages"]))
        table = pa.concat_tables(tables)
        places = pc.index_in(pa.array(self._ids, pa.string()), table["example_id"].combine_chunks())
        if places.null_count:
            raise IntegrityError(f"corpus {self._corpus} lacks the messages of {places.null_count} of its rows")
        # 64-bit offsets: the texts of a large corpus pass 2 GiB.
        return table["messages"].cast(pa.large_string()).take(places)
