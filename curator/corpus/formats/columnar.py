"""Parquet and Arrow files to decoded records, a few hundred rows at a time.

Columns have no absent values, so a null counts as an absent key here at every depth. What a column's type says of its
values is applied (`arrow_values`).
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from curator.corpus.formats.arrow_messages import ARROW_FILE, check_batches
from curator.corpus.formats.arrow_values import ValueFaultError, name_twice, record_converter
from curator.corpus.formats.budget import (
    BATCH_ROWS,
    MAX_ROW_BYTES,
    MAX_VALUES,
    MIB,
    too_many_bytes,
    too_many_values,
)
from curator.corpus.formats.compression import MAX_RATIO_OF_COLUMNS, seekable, unpacked_bound
from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.corpus.formats.layouts import PREFERENCE_KEYS, layout_of
from curator.corpus.formats.parquet_pages import check_footer_size, shared_texts
from curator.corpus.formats.rows import Layout, Problem, Raw
from curator.errors import BadInputError, UnpackedTooLargeError, is_out_of_service

if TYPE_CHECKING:
    from curator.corpus.formats.arrow_sizes import Cache

Convert = Callable[[dict[str, Any]], dict[str, Any]]

READ_ROWS = 256
BUILT_BYTES = 16 * MIB  # of the rows that are Python objects at once, unless one of them is larger
VALUE_BYTES = 64  # what a value costs as a Python object
MAX_COLUMNS = 10_000
ARROW_STREAM = b"\xff\xff\xff\xff"
# Columns whose text is JSON: these may hold no plain text.
JSON_COLUMNS = ("messages", "conversations", "history")


@dataclass(frozen=True)
class _Bounds:
    n_packed: int  # bytes of the file
    max_bytes: int | None  # of all rows as values
    max_row_bytes: int


def read_parquet(file: BinaryIO, max_bytes: int | None = None, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Raw]:
    """Rows of a Parquet file as dicts; raises BadInputError for pages that are too large to be unpacked."""
    import pyarrow.parquet as pq

    with seekable(file) as whole:
        try:
            check_footer_size(whole)
            parquet = pq.ParquetFile(whole, pre_buffer=False)
            if wrong := columns_problem(parquet.schema_arrow.names):
                yield Raw(1, problem=wrong)
                return
            shared = shared_texts(whole, parquet.metadata, max_row_bytes)
            if shared:
                parquet = pq.ParquetFile(whole, pre_buffer=False, read_dictionary=shared)
        except _damage() as error:
            yield Raw(1, problem=Problem("", "invalid_parquet", f"not a whole Parquet file: {error}"))
            return
        bounds = _Bounds(whole.seek(0, io.SEEK_END), max_bytes, max_row_bytes)
        claimed = sum(parquet.metadata.row_group(i).total_byte_size for i in range(parquet.metadata.num_row_groups))
        _check_bytes(claimed, bounds)
        yield from _records(_parquet_batches(parquet, by_group=bool(shared)), "invalid_parquet", bounds)


def _parquet_batches(parquet: Any, *, by_group: bool) -> Iterator[Any]:
    """Batches of the file's rows; by row group where columns are dictionaries, of which a batch can have one alone."""
    if not by_group:
        yield from parquet.iter_batches(batch_size=READ_ROWS)
        return
    for group in range(parquet.metadata.num_row_groups):
        yield from parquet.iter_batches(batch_size=READ_ROWS, row_groups=[group])


def read_arrow(file: BinaryIO, max_bytes: int | None = None, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Raw]:
    """Rows of an Arrow IPC file or stream as dicts; raises BadInputError for batches too large to be unpacked."""
    import pyarrow as pa

    try:
        with seekable(file) as whole:
            bounds = _Bounds(whole.seek(0, io.SEEK_END), max_bytes, max_row_bytes)
            whole.seek(0)
            check_batches(whole, BATCH_ROWS * max_row_bytes)
            if whole.read(len(ARROW_FILE)) == ARROW_FILE:
                reader = pa.ipc.open_file(whole)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
                yield from _records(batches, "invalid_arrow", bounds)
            else:
                whole.seek(0)
                yield from _records(iter(pa.ipc.open_stream(whole)), "invalid_arrow", bounds)
    except _damage() as error:
        if is_out_of_service(error):
            raise
        yield Raw(1, problem=Problem("", "invalid_arrow", f"not a whole Arrow file: {error}"))


def _damage() -> tuple[type[Exception], ...]:
    """What Arrow raises for damaged files: sizes beyond any memory and names that are not UTF-8 are among it."""
    import pyarrow as pa

    return pa.ArrowException, OSError, UnicodeDecodeError, MemoryError


def columnar_layout(file: BinaryIO, container: str, name: str) -> Layout:
    """The layout that a file's columns show; BadInputError when they show none, or the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with seekable(file) as whole:
            if container == "parquet":
                check_footer_size(whole)
                columns = pq.ParquetFile(whole).schema_arrow.names
            elif whole.read(6) == ARROW_FILE:
                columns = pa.ipc.open_file(whole).schema.names
            else:
                whole.seek(0)
                columns = pa.ipc.open_stream(whole).schema.names
    except _damage() as error:
        raise BadInputError(f"{name} is not a whole {container.capitalize()} file: {error}") from error
    return layout_of_columns(columns, name)


def layout_of_columns(columns: list[str], name: str) -> Layout:
    """The layout that column names show; BadInputError when they are neither a layout's nor those of preferences."""
    layout = layout_of(columns)
    if layout is None and PREFERENCE_KEYS.isdisjoint(columns):
        raise BadInputError(
            f"{name} has neither a column messages nor conversations, instruction and output, "
            f"or prompt and completion, but {', '.join(columns)}"
        )
    return layout or "messages"


def count_parquet(file: BinaryIO) -> int | None:
    """Rows of a Parquet file; None when it is not whole (reading it will say how)."""
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(file).metadata.num_rows)
    except _damage():
        return None


def with_json_columns(record: int, line: int | None, value: dict[str, Any]) -> Raw:
    """The record with its JSON text columns decoded, or the problem that one of them has."""
    for key in JSON_COLUMNS:
        text = value.get(key)
        if isinstance(text, str):
            try:
                value[key] = decode(text.encode("utf-8", "surrogatepass"), 0) if text.strip() else None
            except UndecodableError as error:
                problem = Problem(f"/{key}", error.problem.code, error.problem.message)
                return Raw(record, line, problem=problem)
    return Raw(record, line, value=value)


def columns_problem(columns: list[str]) -> Problem | None:
    """The problem of a column that stands there twice, so that readers disagree on its value, or of too many."""
    if len(columns) > MAX_COLUMNS:
        return Problem("", "record_too_large", f"{len(columns):,} columns: at most {MAX_COLUMNS:,} are read")
    twice = name_twice(columns)
    return None if twice is None else Problem(f"/{twice}", "duplicate_key", f"two columns {twice!r}: keep one")


def _records(batches: Iterator[Any], code: str, bounds: _Bounds) -> Iterator[Raw]:
    record = n_bytes = 0
    convert: Convert | None = None
    try:
        for batch in batches:
            if wrong := columns_problem(batch.schema.names):
                yield Raw(record + 1, problem=wrong)
                return
            _check(batch)
            convert = convert or record_converter(batch.schema)
            cache: Cache = {}
            for start in range(0, batch.num_rows, READ_ROWS):
                for rows, size, problem in _groups(batch.slice(start, READ_ROWS), cache, bounds.max_row_bytes):
                    n_bytes += size
                    _check_bytes(n_bytes, bounds)
                    if problem is not None:
                        record += 1
                        yield Raw(record, problem=problem)
                        continue
                    for value in _dicts(rows):
                        record += 1
                        yield _record(record, value, convert)
    except ValueFaultError as error:  # of a column's type, so of every row
        yield Raw(record + 1, problem=error.problem)
    except _damage() as error:
        if is_out_of_service(error):
            raise
        yield Raw(record + 1, problem=Problem("", code, f"damaged after {record} rows: {error}"))


def _groups(batch: Any, cache: "Cache", max_row_bytes: int) -> Iterator[tuple[Any, int, Problem | None]]:
    """The batch in runs of rows that are built together, with their bytes; a row over its budget with its problem."""
    import numpy as np

    from curator.corpus.formats.arrow_sizes import row_sizes

    n_bytes, n_values = row_sizes(batch, cache)
    large, many = n_bytes > max_row_bytes, n_values > MAX_VALUES
    over, cost = large | many, n_bytes + VALUE_BYTES * n_values
    start = 0
    while start < batch.num_rows:
        if over[start]:
            yield None, 0, too_many_bytes(max_row_bytes) if large[start] else too_many_values()
            start += 1
            continue
        fits = (np.cumsum(cost[start:]) <= BUILT_BYTES) & ~np.logical_or.accumulate(over[start:])
        count = max(1, int(fits.sum()))
        yield batch.slice(start, count), int(n_bytes[start : start + count].sum()), None
        start += count


def _check(batch: Any) -> None:
    """Raises ArrowInvalid for a batch whose offsets point outside of its buffers: reading it would end the process.

    Arrow trusts what a file says. Texts are checked as bytes, since one that is not UTF-8 spoils its row alone.
    """
    for column in batch.columns:
        column.view(_texts_as_bytes(column.type)).validate(full=True)


def _texts_as_bytes(kind: Any) -> Any:
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        kind = kind.storage_type
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_texts_as_bytes(field.type)) for field in kind])
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _texts_as_bytes(kind.value_type), kind.ordered)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_texts_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_texts_as_bytes(kind.value_type)))
    return kind


def _check_bytes(n_bytes: int, bounds: _Bounds) -> None:
    most = unpacked_bound(bounds.n_packed, bounds.max_bytes, MAX_RATIO_OF_COLUMNS)
    if most is not None and n_bytes > most:
        by_ratio = f" and {MAX_RATIO_OF_COLUMNS:,} times its size: send it as JSON Lines, unpacked"
        text = f"the file's columns unpack to more than {most:,} bytes"
        raise UnpackedTooLargeError(text if most == bounds.max_bytes else text + by_ratio)


def _dicts(batch: Any) -> Iterator[dict[str, Any] | Problem]:
    """The rows of an Arrow batch; a Problem for one with bytes that are not UTF-8, or a value that Python cannot hold.

    Such a value is a time before the year 1 or after 9999, or one in nanoseconds.
    """
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # raised before the first row: go through them one by one
        for index in range(batch.num_rows):
            yield _dict(batch.slice(index, 1))


def _dict(row: Any) -> dict[str, Any] | Problem:
    value = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (value[name],) = column.to_pylist()
        except UnicodeDecodeError:
            return Problem("", "invalid_unicode", "bytes that are not UTF-8")
        except (ValueError, OverflowError) as error:
            return Problem(f"/{name}", "data_type", f"a {column.type} that cannot be read ({error}): write it as text")
    return value


def _record(record: int, value: dict[str, Any] | Problem, convert: Convert) -> Raw:
    if isinstance(value, Problem):
        return Raw(record, problem=value)
    try:
        return with_json_columns(record, None, convert(value))
    except ValueFaultError as error:
        return Raw(record, problem=error.problem)
