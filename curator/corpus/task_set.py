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
from typing import Any, BinaryIO, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from curator.corpus.formats import DEFAULT_LIMITS, Container, Layout, ReadLimits, Reject, Row, read_rows, read_values
from curator.errors import BadRowsError
from curator.messages import example_id
from curator.store.schema import TASK_ROWS
from curator.store.store import arrow_schema

OnBadRows = Literal["refuse", "drop"]
GROUP_ROWS = 5_000
MAX_LISTED_REJECTS = 1_000


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

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """All rows in order, or some of their columns."""
        return pq.ParquetFile(self.path).read(columns=columns)

    def batches(self, rows: int = GROUP_ROWS, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in order, a batch at a time, or some of their columns."""
        yield from pq.ParquetFile(self.path).iter_batches(batch_size=rows, columns=columns)

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
    UnpackedTooLargeError when compression hides more bytes than the limit, and TooManyRowsError at the first record
    past it, bad ones counted too.
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
    digest, codes, rejects, n_rows = hashlib.sha256(), Counter[str](), list[Reject](), 0
    sources, labelled = hashlib.sha256(), False
    encoded: Future[None] | None = None
    schema = arrow_schema(TASK_ROWS)
    group: list[tuple[bytes, str | None]] = []
    try:
        # Read again and again and kept for a mix alone: cheap to write and read counts more than a third of the size.
        # Groups are encoded by a thread of their own, while the next rows are read.
        with (
            pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=["source"]) as writer,
            ThreadPoolExecutor(1) as encoder,
        ):
            for item in items:
                if isinstance(item, Reject):
                    codes[item.code] += 1
                    if len(rejects) < MAX_LISTED_REJECTS:
                        rejects.append(item)
                    continue
                digest.update(item.json + b"\n")
                sources.update(b"null\n" if item.source is None else orjson.dumps(item.source) + b"\n")
                labelled = labelled or item.source is not None
                group.append((item.json, item.source))
                n_rows += 1
                if len(group) == GROUP_ROWS:
                    table = _group_table(group, n_rows, schema)
                    if encoded is not None:
                        encoded.result()
                    encoded = encoder.submit(writer.write_table, table)
                    group = []
            if encoded is not None:
                encoded.result()
            writer.write_table(_group_table(group, n_rows, schema))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    counts = dict(sorted(codes.items()))
    sources_sha256 = sources.hexdigest() if labelled else None
    return TaskSet(path, n_rows, digest.hexdigest(), codes.total(), counts, tuple(rejects), sources_sha256)


def _group_table(group: list[tuple[bytes, str | None]], end: int, schema: pa.Schema) -> pa.Table:
    """The rows of canonical JSON texts and source labels of which the last one is row `end - 1`."""
    columns = {
        "example_id": pa.array([example_id(text) for text, _ in group], pa.string()),
        "ordinal": pa.array(range(end - len(group), end), pa.int64()),
        "messages": pa.array([text for text, _ in group], pa.string()),
        "source": pa.array([source for _, source in group], pa.string()),
    }
    return pa.table(columns, schema=schema)
