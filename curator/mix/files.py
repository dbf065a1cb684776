"""A mix's files: where they lie, how rows are read, and the canonical JSON line of a row.

A row's line holds its columns in file order without the nulls, `messages` as JSON, and ends in a line feed. So
`rows_sha256` is the SHA-256 of the mix as JSON Lines: anyone can check a download with `sha256sum`, whatever wrote the
Parquet file.

Most rows of a mix are the user's own and hold only whole numbers, hashes and canonical JSON, which need no escaping:
their lines are joined column by column inside Arrow, without a Python object for each row. The values of the other
rows are encoded one by one.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.errors import BadInputError, IntegrityError, MissingError
from curator.messages import dump_messages, load_messages, openai_messages
from curator.store.filesystem import reading_parquet
from curator.store.store import Store

DataFormat = Literal["jsonl", "parquet", "arrow", "openai"]
DATA_FORMATS: tuple[DataFormat, ...] = get_args(DataFormat)
MIX_FILE = "mix.parquet"
LINES_FILE = "mix.jsonl"  # the same rows as JSON Lines, where they were written out: no manifest lists it
MANIFEST_FILE = "manifest.json"
DEFAULT_TENANT = "local"
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MIX_ID_DIGITS = 32  # hexadecimal
_MIX_ID = re.compile(rf"[0-9a-f]{{{MIX_ID_DIGITS}}}")
_PREFIX = re.compile(r"[0-9a-f]{4,31}")
# Columns whose text stands in a line as it is, in file order, and whether it stands in quotes.
_PLAIN: dict[str, bool] = {
    "position": False,
    "epoch": False,
    "origin": True,
    "example_id": True,
    "original_id": True,
    "ordinal": False,
    "messages": False,
}


def is_tenant(name: str) -> bool:
    """Whether a name is a valid tenant name."""
    return _TENANT.fullmatch(name) is not None


def tenant_path(tenant: str) -> str:
    """The folder of a tenant's mixes; raises BadInputError for a name that is none."""
    if not is_tenant(tenant):
        raise BadInputError(f"invalid tenant name {tenant!r}: lower-case letters, digits, - and _, at most 64")
    return f"mixes/{tenant}"


def mix_path(tenant: str, mix_id: str) -> str:
    """The folder of one mix; raises MissingError for what cannot be a mix id."""
    if not _MIX_ID.fullmatch(mix_id):
        more = ", of which this is a part" if _PREFIX.fullmatch(mix_id) else ", or the first 4 or more of them"
        raise MissingError(f"invalid mix id {mix_id!r}: 32 hexadecimal digits{more}")
    return f"{tenant_path(tenant)}/{mix_id}"


def stored_mixes(store: Store) -> dict[str, list[str]]:
    """The ids of the complete mixes of each tenant that has a folder, sorted."""
    tenants = [name for name in store.list("mixes") if is_tenant(name)]
    folders = {tenant: store.list(tenant_path(tenant)) for tenant in tenants}
    return {
        tenant: [name for name in names if store.exists(f"{tenant_path(tenant)}/{name}/{MANIFEST_FILE}")]
        for tenant, names in folders.items()
    }


def find_mix(store: Store, tenant: str, given: str) -> str:
    """The id of the one mix of a tenant that begins with `given` (at least 4 hexadecimal digits).

    Raises MissingError when there is none, BadInputError when there are several.
    """
    return whole_mix_id(
        given, lambda: store.list(tenant_path(tenant)), f"no mix of tenant {tenant}", "`python -m curator status`"
    )


def whole_mix_id(given: str, ids: Callable[[], Iterable[str]], none: str, where: str) -> str:
    """The one of `ids` that begins with `given`; `none` and `where` say in an error what has none and lists them.

    A whole id, and what can be none, comes back as it is: what reads the mix says what is wrong with it.
    """
    if _MIX_ID.fullmatch(given) or not _PREFIX.fullmatch(given):
        return given
    found = [name for name in ids() if name.startswith(given)]
    if len(found) > 1:
        raise BadInputError(f"{given!r} begins {len(found)} mix ids: {', '.join(sorted(found)[:5])}", details=found)
    if not found:
        raise MissingError(f"{none} begins with {given!r}: {where} lists them")
    return found[0]


def mix_batches(
    store: Store,
    tenant: str,
    mix_id: str,
    batch_rows: int = 4096,
    *,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a mix in order, at most `batch_rows` at a time, so that memory stays flat; all columns or some.

    Raises MissingError without such a mix, IntegrityError when the file is not a whole Parquet.
    """
    path = f"{mix_path(tenant, mix_id)}/{MIX_FILE}"
    try:
        with reading_parquet(path, store.base), store.open_file(path) as file:
            rows = pq.ParquetFile(file)
            for group in range(rows.num_row_groups):  # groups of long rows are short: a batch over several is not
                yield from rows.iter_batches(batch_rows, row_groups=[group], columns=columns and list(columns))
    except MissingError as error:
        raise MissingError(f"there is no mix {mix_id} of tenant {tenant}") from error


def row_line(row: Mapping[str, Any]) -> bytes:
    """The canonical JSON line of one row (columns of `schema.MIX_ROWS`, `messages` as stored text)."""
    present = {name: value for name, value in row.items() if value is not None}
    present["messages"] = orjson.Fragment(row["messages"])
    return orjson.dumps(present, option=orjson.OPT_APPEND_NEWLINE)


def row_lines(rows: pa.Table | pa.RecordBatch) -> list[bytes]:
    """The canonical JSON lines of a piece of a mix, all columns present."""
    batches = rows.to_batches() if isinstance(rows, pa.Table) else [rows]
    return [line for batch in batches for line in _lines(batch).to_pylist()]


def json_lines(batch: pa.RecordBatch) -> bytes:
    """The same one after the other."""
    return _bytes(_lines(batch))


def message_lines(batch: pa.RecordBatch) -> bytes:
    """`{"messages": [...]}` lines in OpenAI's chat form, as fine-tuning services take them."""
    texts = batch.column("messages").cast(pa.large_binary())
    called = pc.or_(pc.match_substring(texts, '"tool_calls":['), pc.match_substring(texts, '{"role":"tool"'))
    if pc.any(called).as_py():
        changed = [
            dump_messages(openai_messages(load_messages(text))).encode() for text in texts.filter(called).to_pylist()
        ]
        texts = pc.replace_with_mask(texts, called, pa.array(changed, pa.large_binary()))
    return _bytes(pc.binary_join_element_wise(_text('{"messages":'), texts, _text("}\n"), _text("")))


def text_lines(texts: pa.Array) -> bytes:
    """Texts, each ended by a line feed."""
    return _bytes(pc.binary_join_element_wise(texts.cast(pa.large_binary()), _text("\n"), _text("")))


def rows_sha256(lines: Iterable[bytes]) -> str:
    """SHA-256 in hex of the canonical lines in order."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def verify_download(path: Path, data_format: DataFormat, manifest: Mapping[str, Any]) -> None:
    """Raise IntegrityError unless a downloaded file is what its manifest says."""
    if data_format == "parquet":
        expected = next(item["sha256"] for item in manifest["files"] if item["name"] == MIX_FILE)
        found = _file_sha256(path)
    elif data_format == "jsonl":
        expected, found = manifest["rows_sha256"], _file_sha256(path)
    elif data_format == "arrow":
        expected, found = manifest["rows_sha256"], _arrow_rows_sha256(path)
    else:
        expected, found = f"{manifest['n_rows']} rows", f"{_n_lines(path)} rows"
    if found != expected:
        raise IntegrityError(
            f"the {data_format} download of mix {manifest['mix_id']} is not what its manifest says: "
            f"expected {expected}, got {found}"
        )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _n_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _arrow_rows_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file, pa.ipc.open_stream(file) as batches:
            return rows_sha256(map(json_lines, batches))
    except (pa.ArrowInvalid, OSError):
        return "no whole Arrow stream"


def _lines(batch: pa.RecordBatch) -> pa.LargeBinaryArray:
    if not batch.num_rows:
        return pa.array([], pa.large_binary())
    plain = _is_plain(batch)
    lines = _joined(batch)
    if pc.all(plain).as_py():
        return lines
    others = _by_values(batch.filter(pc.invert(plain)))
    return pc.replace_with_mask(lines, pc.invert(plain), pa.array(others, pa.large_binary()))


def _by_values(rows: pa.RecordBatch) -> list[bytes]:
    """The lines of rows whose values have to be encoded."""
    there = [name for name in rows.schema.names if rows.column(name).null_count < len(rows)]
    if any(rows.column(name).null_count for name in there):
        columns = [rows.column(name).to_pylist() for name in there]
        return [row_line(dict(zip(there, values, strict=True))) for values in zip(*columns, strict=True)]
    # Without nulls every line has the same keys: values are written column by column, and joined by one pattern.
    pattern = b",".join(b'"%b":%%b' % name.encode() for name in there)
    texts = [_json_texts(name, rows.column(name)) for name in there]
    line = b"{" + pattern + b"}\n"
    return [line % values for values in zip(*texts, strict=True)]


def _json_texts(name: str, column: pa.Array) -> list[bytes]:
    """The JSON of each value, as orjson writes it."""
    if name == "messages":
        return column.cast(pa.binary()).to_pylist()  # type: ignore[no-any-return]
    values = column.to_pylist()
    if pa.types.is_string(column.type):
        written = {value: orjson.dumps(value) for value in set(values)}
        return [written[value] for value in values]
    return [orjson.dumps(value) for value in values]


def _is_plain(batch: pa.RecordBatch) -> pa.BooleanArray:
    """Whether a row has nothing but columns that are written as they are."""
    plain = batch.column(0).is_valid()  # its key follows the brace
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name not in _PLAIN and column.null_count < batch.num_rows:
            plain = pc.and_(plain, column.is_null())
        elif _PLAIN.get(name):  # in quotes: nothing that would have to be escaped
            plain = pc.and_(plain, pc.fill_null(pc.ascii_is_alnum(column), True))
    return plain


def _joined(batch: pa.RecordBatch) -> pa.LargeBinaryArray:
    """A line for each row as if all columns were plain; only those of plain rows are meant."""
    parts: list[pa.Scalar | pa.LargeBinaryArray] = []
    for name in (name for name in batch.schema.names if name in _PLAIN):
        column = batch.column(name)
        if column.null_count == batch.num_rows:
            continue
        quote = '"' if _PLAIN[name] else ""
        value = column.cast(pa.large_string()).cast(pa.large_binary())
        member = [_text(f'{"," if parts else "{"}"{name}":{quote}'), value, _text(quote)]
        # Without a value there is no key either.
        parts += [pc.binary_join_element_wise(*member, _text(""))] if column.null_count else member
    together = [*parts, _text("}\n"), _text("")]
    return pc.binary_join_element_wise(*together, null_handling="replace", null_replacement="")


def _text(text: str) -> pa.Scalar:
    return pa.scalar(text.encode(), pa.large_binary())


def _bytes(lines: pa.LargeBinaryArray) -> bytes:
    """The values of an array without nulls, which lie one after the other in its buffer."""
    offsets = memoryview(lines.buffers()[1]).cast("q")
    start, stop = offsets[lines.offset], offsets[lines.offset + len(lines)]
    return bytes(memoryview(lines.buffers()[2])[start:stop])
