"""A mix's rows: where they lie, how they stream, and the canonical JSON line that is hashed and served.

A row's line holds its columns in file order without the nulls, `messages` as JSON, and ends in a line feed. So
`rows_sha256` is the SHA-256 of the mix as JSON Lines: anyone can check a download with `sha256sum`, whatever
wrote the Parquet file.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.errors import BadInputError, MissingError
from curator.storage import reading_parquet
from curator.store import Store

MIX_FILE = "mix.parquet"
MANIFEST_FILE = "manifest.json"
DEFAULT_TENANT = "local"

_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MIX_ID = re.compile(r"[0-9a-f]{32}")


def is_tenant(name: str) -> bool:
    """Whether a tenant may be called so."""
    return _TENANT.fullmatch(name) is not None


def tenant_path(tenant: str) -> str:
    """The folder of a tenant's mixes; raises BadInputError for a name that is none."""
    if not is_tenant(tenant):
        raise BadInputError(f"{tenant!r} is no tenant name: lower-case letters, digits, - and _, at most 64")
    return f"mixes/{tenant}"


def mix_path(tenant: str, mix_id: str) -> str:
    """The folder of one mix; raises MissingError for what cannot be a mix id."""
    if not _MIX_ID.fullmatch(mix_id):
        raise MissingError(f"{mix_id!r} is no mix id: 32 hexadecimal digits")
    return f"{tenant_path(tenant)}/{mix_id}"


def row_line(row: Mapping[str, Any]) -> bytes:
    """The canonical JSON line of one row (columns of `schema.MIX_ROWS`, `messages` as stored text)."""
    present = {name: value for name, value in row.items() if value is not None}
    present["messages"] = orjson.Fragment(row["messages"])
    return orjson.dumps(present, option=orjson.OPT_APPEND_NEWLINE)


def row_lines(rows: pa.Table | pa.RecordBatch) -> list[bytes]:
    """The canonical JSON lines of a piece of a mix, all columns present."""
    is_task = pc.equal(rows.column("origin"), "task")
    n_task = pc.sum(is_task).as_py() or 0
    if n_task in (0, len(rows)):
        return _lines(rows)
    # Task rows lack half of the columns: apart, each kind is read without those that it lacks.
    task, safe = iter(_lines(rows.filter(is_task))), iter(_lines(rows.filter(pc.invert(is_task))))
    return [next(task) if own else next(safe) for own in is_task.to_pylist()]


def _lines(rows: pa.Table | pa.RecordBatch) -> list[bytes]:
    there = [name for name in rows.schema.names if rows.column(name).null_count < len(rows)]
    if any(rows.column(name).null_count for name in there):
        columns = [rows.column(name).to_pylist() for name in there]
        return [row_line(dict(zip(there, values, strict=True))) for values in zip(*columns, strict=True)]
    # Without nulls every line has the same keys: values are written column by column, and joined by one pattern.
    pattern = b",".join(b'"%b":%%b' % name.encode() for name in there)
    texts = [_json_texts(name, rows.column(name)) for name in there]
    line = b"{" + pattern + b"}\n"
    return [line % values for values in zip(*texts, strict=True)]


def _json_texts(name: str, column: pa.Array | pa.ChunkedArray) -> list[bytes]:
    """The JSON of each value, as orjson writes it."""
    if name == "messages":
        return column.cast(pa.binary()).to_pylist()  # type: ignore[no-any-return]
    values = column.to_pylist()
    if pa.types.is_string(column.type):
        written = {value: orjson.dumps(value) for value in set(values)}
        return [written[value] for value in values]
    if pa.types.is_integer(column.type):
        return [b"%d" % value for value in values]
    return [orjson.dumps(value) for value in values]


def rows_sha256(lines: Iterable[bytes]) -> str:
    """SHA-256 in hex of the canonical lines in order."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def mix_batches(
    store: Store,
    tenant: str,
    mix_id: str,
    batch_rows: int = 4096,
    *,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a mix in order, `batch_rows` at a time, so that memory stays flat; all columns or some.

    Raises MissingError without such a mix, IntegrityError when the file is no whole Parquet.
    """
    path = f"{mix_path(tenant, mix_id)}/{MIX_FILE}"
    try:
        with reading_parquet(path, store.base), store.open_file(path) as file:
            yield from pq.ParquetFile(file).iter_batches(batch_rows, columns=None if columns is None else list(columns))
    except MissingError as error:
        raise MissingError(f"there is no mix {mix_id} of tenant {tenant}") from error
