"""The messages of a pool's rows by row number, with random access.

    pools/<corpus>/texts-<part>-<state>.arrow    the messages of one part of the corpus, in its order

Each file has 16 rows to a Zstandard batch, so that any row is read alone. It follows from its part alone, so that
scorers and later revisions share it; it can be deleted at any time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.corpus.manifest import Corpus
from curator.errors import IntegrityError
from curator.select.candidates import Rows
from curator.store.filesystem import reading_parquet, writing_whole
from curator.store.store import Store

TEXT_BATCH_ROWS = 16
_SCHEMA = pa.schema([pa.field("messages", pa.string(), nullable=False)])


class PoolTexts:
    """`texts(rows)` gives the canonical JSON of some rows, in their order.

    `places(rows)` are their places in the corpus, all of its parts one after the other. `files` has a file of
    `write_texts` for each part; without one, the corpus's texts are read once, when first asked for, and held.
    """

    def __init__(
        self, store: Store, corpus: Corpus, places: Callable[[Rows], Rows], files: Sequence[Path] | None = None
    ) -> None:
        self._store, self._corpus, self._places, self._files = store, corpus, places, files
        self._readers: list[Any] | None = None
        self._held: pa.ChunkedArray | None = None

    def __call__(self, rows: Rows) -> list[str]:
        """The texts of these rows; raises IntegrityError when the corpus lacks them."""
        places = self._places(rows)
        if self._readers is None and self._files is not None:
            with suppress(OSError, pa.ArrowException):  # deleted or damaged: read the corpus instead
                self._readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in self._files]
        if self._readers is not None:
            with suppress(pa.ArrowException, IndexError):
                return _from_files(self._readers, places)
        if self._held is None:
            columns = [self._store.read_table(part, ["messages"])["messages"] for part in self._corpus.parts]
            # 64-bit offsets: the texts of a large corpus pass 2 GiB.
            pieces = [column.cast(pa.large_string()) for column in columns]
            self._held = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pa.large_string())
        if len(places) and places.max() >= len(self._held):
            raise IntegrityError(f"corpus {self._corpus.name} lacks the messages of some of its rows: ingest again")
        texts: list[str] = self._held.take(pa.array(places)).to_pylist()
        return texts

    def reading_order(self, rows: Rows) -> Rows:
        """The same rows in the order in which their texts are read fastest."""
        return rows[np.argsort(self._places(rows), kind="stable")]


def _from_files(readers: Sequence[Any], places: Rows) -> list[str]:
    """The texts at these places; raises IndexError when a file has fewer rows."""
    sizes = [_n_rows(reader) for reader in readers]
    starts = np.cumsum([0, *sizes])
    if len(places) and places.max() >= starts[-1]:
        raise IndexError("the files have fewer texts")
    parts = np.searchsorted(starts, places, side="right") - 1
    batches, inside = np.divmod(places - starts[parts], TEXT_BATCH_ROWS)
    found: list[str] = [""] * len(places)
    held, column = (-1, -1), pa.array([], pa.string())
    order = np.lexsort((inside, batches, parts))
    columns = (order, parts[order], batches[order], inside[order])
    for place, part, batch, row in zip(*(column.tolist() for column in columns), strict=True):
        if (part, batch) != held:
            held, column = (part, batch), readers[part].get_batch(batch)[0]
        found[place] = column[row].as_py()
    return found


def _n_rows(reader: Any) -> int:
    n_batches: int = reader.num_record_batches
    if not n_batches:
        return 0
    return (n_batches - 1) * TEXT_BATCH_ROWS + int(reader.get_batch(n_batches - 1).num_rows)


def texts_path(store: Store, corpus: Corpus, part: str) -> Path | None:
    """Where the texts of a part are kept; None for a store that is not on this machine."""
    folder = store.local_path(f"pools/{corpus.name}")
    return None if folder is None else folder / f"texts-{PurePosixPath(part).stem}-{part_state(store, part)}.arrow"


def part_state(store: Store, part: str) -> str:
    """Size, time and inode of a part, in hex; another file under the same name has another."""
    local = store.local_path(part)
    with suppress(OSError):  # what is missing is reported by whoever reads it
        if local is not None:
            state = local.stat()
            return f"{state.st_size:x}-{state.st_mtime_ns:x}-{state.st_ino:x}"
    return "none"


def write_texts(store: Store, part: str, path: Path) -> None:
    """Write the texts of one part of a corpus; raises StoreError when that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with writing_whole(path) as file, pa.ipc.new_file(file, _SCHEMA, options=options) as writer:
        for texts in _whole_batches(_text_columns(store, part)):
            for start in range(0, len(texts), TEXT_BATCH_ROWS):
                batch = texts.slice(start, TEXT_BATCH_ROWS)
                writer.write_batch(pa.record_batch([batch], schema=_SCHEMA))
    for other in path.parent.glob(f"{path.name.split('-', 1)[0]}-{PurePosixPath(part).stem}-*.arrow"):
        if other != path:  # of an earlier file under the part's name
            other.unlink(missing_ok=True)


def _whole_batches(columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
    """The same texts in arrays of whole batches, but for the last."""
    left = pa.array([], pa.string())
    for column in columns:
        texts = pa.concat_arrays([left, column])
        n_whole = len(texts) - len(texts) % TEXT_BATCH_ROWS
        yield texts.slice(0, n_whole)
        left = texts.slice(n_whole)
    yield left


def _text_columns(store: Store, part: str) -> Iterator[pa.Array]:
    with reading_parquet(part, store.base), store.open_file(part) as file:
        groups = pq.ParquetFile(file)
        for group in range(groups.num_row_groups):
            yield from groups.read_row_group(group, ["messages"])["messages"].chunks
