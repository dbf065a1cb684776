"""A user's fine-tuning data, streamed into a table of canonical rows in the user's order.

Repeats are kept, and the order counts: both are part of what the ordered hash covers. Bad records are returned,
not judged: the caller refuses the set or goes on without them.
"""

import hashlib
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from curator.corpus.formats import (
    DEFAULT_LIMITS,
    MAX_LISTED_REJECTS,
    Container,
    Layout,
    ReadLimits,
    Reject,
    Row,
    read_rows,
    read_values,
)
from curator.errors import BadRowsError
from curator.messages import example_id
from curator.store.schema import TASK_ROWS
from curator.store.store import arrow_schema

OnBadRows = Literal["refuse", "drop"]
GROUP_ROWS = 5_000  # of a row group at most, which is what is in memory at once
GROUP_BYTES = 16 << 20  # of its texts, but for the last one's
_NO_SOURCE = b"null\n"


@dataclass(frozen=True)
class TaskSet:
    """A user's rows on disk (columns of TASK_ROWS, `ordinal` counting the usable rows from 0), and the bad ones.

    `sha256` is over the canonical messages of each row in order, each followed by a line feed. `rejects` holds
    the first thousand bad records; `n_rejected` and `reject_codes` count all. `sources_sha256` is the same hash over
    the rows' `source` labels as JSON (null for a row without one), and null where no row has one.
    """

    path: Path
    n_rows: int
    sha256: str
    n_rejected: int
    reject_codes: dict[str, int]
    rejects: tuple[Reject, ...]
    sources_sha256: str | None = None

    @property
    def n_parsed(self) -> int:
        """Records read: usable and bad ones together."""
        return self.n_rows + self.n_rejected

    @property
    def widest_bytes(self) -> int:
        """Bytes of a row's messages in the row group where they are largest, as its mean."""
        groups = pq.ParquetFile(self.path).metadata
        place = groups.schema.to_arrow_schema().get_field_index("messages")
        found = (groups.row_group(number) for number in range(groups.num_row_groups))
        means = (group.column(place).total_uncompressed_size // max(1, group.num_rows) for group in found)
        return max(means, default=0)

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """All rows in order, or some of their columns."""
        return pq.ParquetFile(self.path).read(columns=columns)

    def batches(self, rows: int = GROUP_ROWS, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in order, or some of their columns, a batch at a time: of `rows` rows or of one row group."""
        file = pq.ParquetFile(self.path)
        for group in range(file.num_row_groups):  # a batch over several would hold any number of bytes
            # Nearly all bytes are of one column: other threads would only be woken.
            yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False)

    def reject_dicts(self) -> list[dict[str, Any]]:
        """One plain dict per problem of the listed rejects, for an error body."""
        return [problem for reject in self.rejects for problem in reject.as_dicts()]

    def require_usable(self, on_bad_rows: OnBadRows = "refuse") -> None:
        """`check_bad_rows` on this set."""
        check_bad_rows(self.n_rows, self.n_rejected, self.rejects, on_bad_rows)


def check_bad_rows(
    n_rows: int, n_rejected: int, rejects: Sequence[Reject], on_bad_rows: OnBadRows, what: str = "task rows"
) -> None:
    """The one rule for bad records: a set is refused, or goes on without them if so asked and a row is left.

    `rejects` are the bad records that are listed. Raises BadRowsError with every problem of these in its details.
    """
    if not n_rows + n_rejected:
        raise BadRowsError("the data set has no rows")
    if not n_rejected or (on_bad_rows == "drop" and n_rows):
        return
    first = rejects[0]
    remedy = "mend the file, or keep bad rows out with --on-bad-rows drop" if n_rows else "no row can be used"
    raise BadRowsError(
        f"{n_rejected} of {n_rows + n_rejected} {what} are bad; the first is {first.place()}: "
        f"{first.code}, {first.message}; {remedy}",
        details=[problem for reject in rejects for problem in reject.as_dicts()],
    )


def read_task_set(
    source: str | Path | BinaryIO,
    workdir: str | Path,
    *,
    format: Container | None = None,  # noqa: A002 - the word of the command line
    layout: Layout | None = None,
    name: str | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> TaskSet:
    """Stream a user's data (path, hub id or seekable binary file) into Parquet under `workdir`, in flat memory.

    The caller owns the new file. Raises BadInputError or MissingError when the data as a whole cannot be read,
    UnpackedTooLargeError when compression hides more bytes than the limit, TooManyRowsError at the first record
    past it, bad ones counted too, and BadRowsError at the first bad one past theirs.
    """
    rows = read_rows(source, format=format, layout=layout, name=name, limits=limits)
    return _write(rows, Path(workdir))


def task_set_from_rows(
    rows: Iterable[object],
    workdir: str | Path,
    *,
    layout: Layout | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> TaskSet:
    """The same for records in memory, such as the rows of a JSON request."""
    return _write(read_values(rows, layout=layout, limits=limits), Path(workdir))


def _write(items: Iterator[Row | Reject], workdir: Path) -> TaskSet:
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / f"task-rows-{secrets.token_hex(8)}.parquet"
    codes, rejects = Counter[str](), list[Reject]()
    encoded: Future[None] | None = None
    group: list[tuple[bytes, str | None]] = []
    n_bytes = 0
    try:
        # Groups are hashed and encoded by a thread of their own, while the next rows are read.
        with _Groups(path) as groups, ThreadPoolExecutor(1) as encoder:
            for item in items:
                if isinstance(item, Reject):
                    codes[item.code] += 1
                    if len(rejects) < MAX_LISTED_REJECTS:
                        rejects.append(item)
                    continue
                group.append((item.json, item.source))
                n_bytes += len(item.json) + len(item.source or "")
                if len(group) == GROUP_ROWS or n_bytes >= GROUP_BYTES:
                    if encoded is not None:
                        encoded.result()
                    encoded = encoder.submit(groups.write, group)
                    group, n_bytes = [], 0
            if encoded is not None:
                encoded.result()
            groups.write(group)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    counts = dict(sorted(codes.items()))
    return TaskSet(path, groups.n_rows, groups.sha256, codes.total(), counts, tuple(rejects), groups.sources_sha256)


class _Groups:
    """Writes and hashes rows, a group of canonical JSON texts and source labels at a time."""

    def __init__(self, path: Path) -> None:
        # Read again and again and kept for a mix alone: cheap to write and read counts more than a third of the size.
        self._schema = arrow_schema(TASK_ROWS)
        # Nobody looks for a row by the bounds of its text.
        written: dict[str, Any] = {"use_dictionary": ["source"], "write_statistics": False}
        self._writer = pq.ParquetWriter(path, self._schema, compression="lz4", **written)
        self._texts, self._sources, self._labelled = hashlib.sha256(), hashlib.sha256(), False
        self.n_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    @property
    def sha256(self) -> str:
        """That of a TaskSet, over the groups so far."""
        return self._texts.hexdigest()

    @property
    def sources_sha256(self) -> str | None:
        """That of a TaskSet, over the groups so far."""
        return self._sources.hexdigest() if self._labelled else None

    def write(self, group: Sequence[tuple[bytes, str | None]]) -> None:
        """Write the next group."""
        texts, sources = [text for text, _ in group], [source for _, source in group]
        self._texts.update(b"\n".join([*texts, b""]))  # at once: the other thread reads meanwhile
        self._sources.update(b"".join([_NO_SOURCE if item is None else orjson.dumps(item) + b"\n" for item in sources]))
        self._labelled = self._labelled or any(item is not None for item in sources)
        columns = {
            "example_id": pa.array([example_id(text) for text in texts], pa.string()),
            "ordinal": pa.array(range(self.n_rows, self.n_rows + len(group)), pa.int64()),
            "messages": pa.array(texts, pa.binary()).view(pa.string()),  # UTF-8 by construction: no need to look again
            "source": pa.array(sources, pa.string()),
        }
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self.n_rows += len(group)
