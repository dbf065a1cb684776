"""The processes behind curator.query.sandbox_client: a parent with the views, and its children, forked one per job.

A child takes one job in on stdin, gives one answer out on stdout, and ends. The answer is a line of JSON (ok, n_rows,
truncated, n_bytes; or ok, kind, message) and then the bytes.
"""

import csv
import io
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import sql
from curator.corpus.manifest import corpus_names, read_corpus, read_scorers
from curator.errors import BadInputError, BallastError, MissingError
from curator.query.confine import code_folders, confine
from curator.query.database import Connection, connect, limit_time
from curator.query.fork_server import is_single_threaded, serve
from curator.query.guard import check_statement, reason_of
from curator.query.pivot import MAX_VALUES, find_pivot
from curator.query.queries import bound_query, readable, written_as
from curator.query.sandbox_client import MIB, SqlLimits, StatementStoppedError
from curator.store.store import Store

HEADROOM_BYTES = 512 * MIB  # address space beyond the process's memory: allocators reserve more than they use
SPARE_BYTES = 64 * MIB  # of the process's memory, for what DuckDB does not count: results, and their text
LEAST_ROOM_BYTES = 96 * MIB
MAX_OPEN_FILES = 1024
MAX_REASON_CHARS = 2_000
NICENESS = 10  # a statement never takes the processor from the service


@dataclass
class Views:
    """What the parent has ready: a connection with the views of a store, and every file that they read.

    `state` says which store, and how its manifests were when it was made.
    """

    connection: Connection | None = None
    parts: list[str] = field(default_factory=list)
    state: object = None
    can_hold: bool = True  # False once the parent had other threads, which no child would have

    def prepare(self, path: str) -> None:
        """Load the views of a store, unless they are; without them a child loads its own, and says what is wrong."""
        if self.state == (state := (path, _manifest_states(Path(path)))) or not self.can_hold:
            return
        if self.connection is not None:
            self.connection.close()
        self.connection, self.state = None, None
        with suppress(BallastError, duckdb.Error, OSError):
            store = Store(path)
            connection = connect(store, threads=False)
            self.can_hold = is_single_threaded()
            if self.can_hold:
                self.connection, self.parts, self.state = connection, _parts(store), state
            else:
                connection.close()

    def of(self, store: Store) -> tuple[Connection, list[str]]:
        """The connection and its files, made now where there is none."""
        if self.connection is None:
            return connect(store), _parts(store)
        # Every child would draw the same numbers otherwise.
        seed = int.from_bytes(os.urandom(8)) / 2**63 - 1
        self.connection.execute("select setseed($seed)", {"seed": seed})
        return self.connection, self.parts


def _manifest_states(root: Path) -> list[tuple[str, int, int, int]]:
    """Place, size, time and inode of every manifest that views follow from."""
    found = []
    for pattern in ("corpora/*/corpus.json", "scores/*/*/scorer.json"):
        for path in root.glob(pattern):
            with suppress(FileNotFoundError):  # removed in this moment
                state = path.stat()
                found.append((str(path), state.st_size, state.st_mtime_ns, state.st_ino))
    return sorted(found)


def main(descriptor: int) -> None:
    """Fork a child for each message on the socket, until the service closes it."""
    views = Views()
    serve(descriptor, views.prepare, lambda: work(views))


def work(views: Views) -> int:
    """Do one job; an end of input without one is the service's own end."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    job = json.loads(line)
    try:
        head, data = _run(job, views)
    except BallastError as error:
        root = str(Path(job["store"]))
        head, data = {"ok": False, "kind": _kind(error), "message": error.message.replace(root, "(store)")}, b""
    except MemoryError:
        head, data = {"ok": False, "kind": "stopped", "message": "the statement needs more memory than it gets"}, b""
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + data)
    sys.stdout.buffer.flush()
    return 0


def _kind(error: BallastError) -> str:
    kinds: tuple[tuple[type[BallastError], str], ...] = (
        (MissingError, "not_found"),
        (StatementStoppedError, "stopped"),
        (BadInputError, "bad_input"),
    )
    return next((kind for group, kind in kinds if isinstance(error, group)), "internal")


def _run(job: dict[str, Any], views: Views) -> tuple[dict[str, Any], bytes]:
    limits = SqlLimits(**job["limits"])
    connection, parts = views.of(Store(job["store"]))
    with connection:
        limit_time(connection, limits.timeout_s)
        statement, params = _statement(connection, job)
        pivot = find_pivot(statement)
        for query in [statement] if pivot is None else pivot.queries:
            check_statement(connection, query)
        room = _room(limits)
        lock_connection(connection, parts, replace(limits, memory_bytes=room - SPARE_BYTES))
        _limit_process(limits, room)
        confine([*parts, *code_folders()])
        sys.stdout.buffer.write(b"ready\n")
        sys.stdout.buffer.flush()
        if pivot is not None:
            texts = SqlLimits(limits.timeout_s, limits.memory_bytes, MAX_VALUES + 1, limits.max_bytes)
            found = [_fetch(connection, query, params, texts) for query in pivot.queries]
            if any(truncated for _, _, truncated in found):
                raise StatementStoppedError("the values of the PIVOT take more memory than an answer gets")
            statement = pivot.filled([table["value"].to_pylist() for table, _, _ in found])
            check_statement(connection, statement)
        table, types, truncated = _fetch(connection, statement, params, limits)
    with written_as(job["format"]):
        data = _FORMATS[job["format"]](table, types, truncated)
    return {"ok": True, "n_rows": table.num_rows, "truncated": truncated, "n_bytes": len(data)}, data


def _statement(connection: Connection, job: dict[str, Any]) -> tuple[str, dict[str, sql.Value]]:
    if job["query"] is None:
        return job["statement"], {}
    return bound_query(connection, job["query"], job["params"])


def _parts(store: Store) -> list[str]:
    """Every file that the views read, and no other."""
    found: list[str] = []
    for name in corpus_names(store):
        corpus = read_corpus(store, name)
        found += [*corpus.parts, *(path for group in (*corpus.sources, *corpus.rejects) for path in group)]
        found += [path for scorer in read_scorers(store, corpus) for path in scorer.parts]
    return [store.url(path) for path in found]


def lock_connection(connection: Connection, parts: list[str], limits: SqlLimits) -> None:
    """Take away from DuckDB what a statement does not need: every file but the parts, and all settings."""
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in parts)
    for setting in (
        f"memory_limit = '{limits.memory_bytes // 1000}KB'",
        "threads = 1",
        "temp_directory = ''",
        "max_expression_depth = 200",
        f"allowed_paths = [{quoted}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"set {setting}")


def _room(limits: SqlLimits) -> int:
    """Bytes that the process may still take: its own libraries count too. Raises BallastError where that is too few."""
    _, resident, _ = _mapped_bytes()
    room = limits.memory_bytes - resident
    if room < LEAST_ROOM_BYTES:
        least = (resident + LEAST_ROOM_BYTES) // MIB + 1
        raise BallastError(f"a statement's process needs {least} MiB at least: raise its memory (sql_memory_bytes)")
    return room


def _mapped_bytes() -> tuple[int, int, int]:
    """Bytes of address space, in memory, and of private data, of this process (proc(5), statm)."""
    pages = [int(number) * resource.getpagesize() for number in Path("/proc/self/statm").read_text().split()]
    return pages[0], pages[1], pages[5]


def _limit_process(limits: SqlLimits, room: int) -> None:
    """The same from the kernel: no file is written, memory and processor time are bounded.

    Memory grows by private data alone, so that its limit keeps the process within its whole memory.
    """
    os.nice(NICENESS)
    address_space, _, data = _mapped_bytes()
    address_space += room + HEADROOM_BYTES
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = math.ceil(spent.ru_utime + spent.ru_stime + limits.timeout_s + 2)
    for what, bound in (
        (resource.RLIMIT_AS, address_space),
        (resource.RLIMIT_DATA, data + room),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
    ):
        inherited = resource.getrlimit(what)[1]
        lowest = bound if inherited == resource.RLIM_INFINITY else min(bound, inherited)
        resource.setrlimit(what, (lowest, lowest))


def _fetch(
    connection: Connection, statement: str, params: dict[str, sql.Value], limits: SqlLimits
) -> tuple[pa.Table, list[str], bool]:
    """The rows up to the caps, the columns' SQL types, and whether there were more."""
    try:
        relation = connection.sql(statement, params=params or None)
        if relation is None:
            raise BadInputError("the statement gives no rows")
        names = list(relation.columns)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise BadInputError(f"two columns are named {repeated[0]!r}: give one an alias")
        types = [str(kind) for kind in relation.types]
        reader = readable(relation).limit(limits.max_rows + 1).to_arrow_reader(2048)
        table, truncated = _capped(reader, limits)
    except duckdb.InterruptException as error:
        raise StatementStoppedError("the statement ran past its time limit and was stopped: narrow it down") from error
    except duckdb.OutOfMemoryException as error:
        raise StatementStoppedError("the statement needs more memory than it gets: narrow it down") from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        reason = reason_of(error).split("\n\n")[0][:MAX_REASON_CHARS]
        if "Out of Memory" in reason or "maximum execution time" in reason:  # wrapped by the result's stream
            raise StatementStoppedError(f"the statement was stopped: {reason}") from error
        raise BadInputError(f"the statement failed: {reason}") from error
    return table, types, truncated


def _capped(reader: pa.RecordBatchReader, limits: SqlLimits) -> tuple[pa.Table, bool]:
    kept: list[pa.RecordBatch] = []
    n_rows = n_bytes = 0
    for batch in reader:
        room = limits.max_rows - n_rows
        taken = batch.slice(0, room)
        while taken.num_rows and n_bytes + taken.nbytes > limits.max_bytes:
            taken = taken.slice(0, taken.num_rows // 2)
        kept.append(taken)
        n_rows += taken.num_rows
        n_bytes += taken.nbytes
        if taken.num_rows < batch.num_rows:
            return pa.Table.from_batches(kept, reader.schema), True
    return pa.Table.from_batches(kept, reader.schema), False


def _json(table: pa.Table, types: list[str], truncated: bool) -> bytes:
    columns = [{"name": name, "type": kind} for name, kind in zip(table.column_names, types, strict=True)]
    document = {"columns": columns, "rows": table.to_pylist(), "n_rows": table.num_rows, "truncated": truncated}
    return orjson.dumps(document, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS)


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _csv(table: pa.Table, types: list[str], truncated: bool) -> bytes:
    """Null is an empty field, a list or struct its JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        writer.writerow(
            orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
            if isinstance(value, list | dict)
            else value.hex()
            if isinstance(value, bytes)
            else value
            for value in row
        )
    return text.getvalue().encode()


def _arrow(table: pa.Table, types: list[str], truncated: bool) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(table: pa.Table, types: list[str], truncated: bool) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


_FORMATS: dict[str, Callable[[pa.Table, list[str], bool], bytes]] = {
    "json": _json,
    "csv": _csv,
    "arrow": _arrow,
    "parquet": _parquet,
}

if __name__ == "__main__":
    main(int(sys.argv[1]))
