"""The messages of a pool's rows by row number, with random access.

    pools/<corpus>/texts-<part>-<state>.arrow    the messages of one part of the corpus, in its order

A file is mapped and not read: uncompressed, since of 16 compressed rows that hold one chosen row 15 are wasted, and
chosen rows lie far apart. It follows from its part alone, so that scorers and later revisions share it; it can be
deleted at any time.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.corpus.manifest import Corpus
from curator.errors import IntegrityError
from curator.select.candidates import Rows
from curator.store.filesystem import atomic_write, reading_parquet
from curator.store.store import Store

_SCHEMA = pa.schema([pa.field("messages", pa.string(), nullable=False)])


class PoolTexts:
    """`texts(rows)` gives the canonical JSON of some rows, in their order.

    `places(rows)` are their places in the corpus, all of its parts one after the other. `files` has a file of
    `write_texts` for each part; without them, the corpus's texts are read once, when first asked for, and held.
    """

    def __init__(
        self, store: Store, corpus: Corpus, places: Callable[[Rows], Rows], files: Sequence[Path] | None = None
    ) -> None:
        self._store, self._corpus, self._places, self._files = store, corpus, places, files
        self._columns: list[pa.Array] | None = None

    def __call__(self, rows: Rows) -> list[str]:
        """The texts of these rows; raises IntegrityError when the corpus lacks them."""
        if self._columns is None:
            self._columns = self._mapped() or self._read()
        places = self._places(rows)
        starts = np.cumsum([0, *map(len, self._columns)])
        if len(places) and places.max() >= starts[-1]:
            raise IntegrityError(f"corpus {self._corpus.name} lacks the messages of some of its rows: ingest again")
        order = np.argsort(places, kind="stable")
        columns = np.searchsorted(starts, places[order], side="right") - 1
        found: list[str] = [""] * len(places)
        for some in np.split(order, np.flatnonzero(np.diff(columns)) + 1) if len(order) else ():
            column = int(np.searchsorted(starts, places[some[0]], side="right")) - 1
            texts = self._columns[column].take(pa.array(places[some] - starts[column])).to_pylist()
            for place, text in zip(some.tolist(), texts, strict=True):
                found[place] = text
        return found

    def reading_order(self, rows: Rows) -> Rows:
        """The same rows in the order in which their texts are read fastest."""
        return rows[np.argsort(self._places(rows), kind="stable")]

    def _mapped(self) -> list[pa.Array] | None:
        """The columns in the files; None without them, and where one was deleted or is damaged."""
        with suppress(OSError, pa.ArrowException):
            readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in self._files or ()]
            return [reader.get_batch(i)[0] for reader in readers for i in range(reader.num_record_batches)]
        return None

    def _read(self) -> list[pa.Array]:
        tables = (self._store.read_table(part, ["messages"]) for part in self._corpus.parts)
        return [chunk for table in tables for chunk in table["messages"].chunks]


def text_bytes(store: Store, corpus: Corpus) -> int:
    """Bytes of all messages of a corpus in memory; raises what opening its parts raises."""
    total = 0
    for part in corpus.parts:
        with reading_parquet(part, store.base), store.open_file(part) as file:
            metadata = pq.ParquetFile(file).metadata
            place = metadata.schema.names.index("messages")
            groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
            total += sum(group.column(place).total_uncompressed_size for group in groups)
    return total


def texts_path(store: Store, corpus: Corpus, part: str) -> Path | None:
    """Where the texts of a part are kept; None for a store that is not on this machine."""
    folder = store.local_path(f"pools/{corpus.name}")
    return None if folder is None else folder / f"texts-{PurePosixPath(part).stem}-{store.file_state(part)}.arrow"


def write_texts(store: Store, part: str, path: Path) -> None:
    """Write the texts of one part of a corpus; raises StoreError when that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        reading_parquet(part, store.base), store.open_file(part) as source,
        atomic_write(path, durable=True) as temporary, pa.ipc.new_file(str(temporary), _SCHEMA) as writer,
    ):  # fmt: skip
        groups = pq.ParquetFile(source)
        for group in range(groups.num_row_groups):
            for column in groups.read_row_group(group, ["messages"])["messages"].chunks:
                writer.write_batch(pa.record_batch([column], schema=_SCHEMA))
    for other in path.parent.glob(f"texts-{PurePosixPath(part).stem}-*.arrow"):
        if other != path:  # of an earlier file under the part's name
            other.unlink(missing_ok=True)
