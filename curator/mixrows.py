"""A mix's rows: where they lie and how they stream. `curator.rowlines` writes them as JSON."""

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
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
