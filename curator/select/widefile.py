"""Wide tables on disk: Arrow files that are mapped and not read, in a folder that is renamed into place when complete.

    wide/<corpus>/<key>/columns.arrow    one record batch, uncompressed; digests and bounds in its schema's metadata
    wide/<corpus>/<key>/texts.arrow      messages by row, 16 rows to a Zstandard batch, so that any row is read alone
    wide/<corpus>/<key>/...              what is kept beside them: quantiles of a score, signatures

The key names everything that a table follows from, so that a folder is right or not looked for. Any of it can be
deleted at any time.
"""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from curator.select.columns import Coded, Indices
from curator.select.wide import Member, Wide

WIDE_FORMAT_VERSION = 1
COLUMNS_FILE, TEXTS_FILE = "columns.arrow", "texts.arrow"
TEXT_BATCH_ROWS = 16
_META = b"wide"
_MATRICES = ("halves", "nll_sum", "n_tokens", "mean_nll", "lacks")

Array = npt.NDArray[Any]


def write_wide(path: Path, wide: Wide) -> None:
    """Write the columns; the caller makes the file durable and puts it in its place."""
    arrays = {name: getattr(wide, name) for name in ("rank", "refusals", *_MATRICES)}
    arrays |= {f"number_{name}": held for name, held in wide.numbers.items()}
    arrays |= {f"label_{name}": label.codes for name, label in wide.labels.items()}
    document = {
        "format_version": WIDE_FORMAT_VERSION,
        "members": [[member.scorer_id, member.role] for member in wide.members],
        "labels": {name: label.values for name, label in wide.labels.items()},
        "bounds": _text(wide.bounds),
        "digests": wide.digests,
    }
    columns = {name: _column(held) for name, held in arrays.items() if held.ndim == 1 or held.shape[1]}
    table = pa.table(columns).replace_schema_metadata({_META: orjson.dumps(document)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(wide)))


def read_wide(path: Path) -> Wide:
    """The table behind a file that `write_wide` made, mapped; raises OSError or pa.ArrowException when it is none."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    document = orjson.loads(table.schema.metadata[_META])
    arrays = {name: _array(table[name]) for name in table.column_names}
    n_rows, n_members = table.num_rows, len(document["members"])
    empty = {"nll_sum": np.float64, "n_tokens": np.int32, "mean_nll": np.float64, "lacks": np.uint8}
    given = {name: arrays.get(name, np.zeros((n_rows, 0), kind)) for name, kind in empty.items()}
    assert given["mean_nll"].shape == (n_rows, n_members)
    return Wide(
        members=tuple(Member(scorer_id, role) for scorer_id, role in document["members"]),
        halves=arrays["halves"],
        rank=arrays["rank"],
        refusals=arrays["refusals"],
        labels={name: Coded(arrays[f"label_{name}"], tuple(held)) for name, held in document["labels"].items()},
        numbers={name.removeprefix("number_"): held for name, held in arrays.items() if name.startswith("number_")},
        nll_sum=given["nll_sum"],
        n_tokens=given["n_tokens"],
        mean_nll=given["mean_nll"],
        lacks=given["lacks"],
        bounds=_from_text(document["bounds"]),
        digests=document["digests"],
    )


class Texts:
    """The messages of a table's rows, from a file that `write_texts` made; reads only the batches asked for."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))

    def __call__(self, rows: Indices) -> list[str]:
        """The texts of these rows, in their order."""
        batches, inside = np.divmod(rows, TEXT_BATCH_ROWS)
        found: list[str] = [""] * len(rows)
        order = np.argsort(batches, kind="stable")
        held, column = -1, pa.array([], pa.string())
        for place, batch, row in zip(order.tolist(), batches[order].tolist(), inside[order].tolist(), strict=True):
            if batch != held:
                held, column = batch, self._reader.get_batch(batch)[0]
            found[place] = column[row].as_py()
        return found


def write_texts(path: Path, batches: Iterator[Sequence[str]]) -> None:
    """Write all rows' texts, given in order."""
    schema = pa.schema([pa.field("messages", pa.string(), nullable=False)])
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    held: list[str] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
        for texts in batches:
            held += texts
            whole = len(held) - len(held) % TEXT_BATCH_ROWS
            _write_batches(writer, schema, held[:whole])
            held = held[whole:]
        _write_batches(writer, schema, held)


def _write_batches(writer: Any, schema: pa.Schema, texts: Sequence[str]) -> None:
    for start in range(0, len(texts), TEXT_BATCH_ROWS):
        some = pa.array(texts[start : start + TEXT_BATCH_ROWS], pa.string())
        writer.write_batch(pa.record_batch([some], schema=schema))


def _column(held: Array) -> pa.Array:
    if held.ndim == 1:
        return pa.array(held)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(held).ravel()), held.shape[1])


def _array(column: pa.ChunkedArray) -> Array:
    if not column.num_chunks:
        kind = column.type
        width = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
        return np.zeros((0, width) if width else 0, (kind.value_type if width else kind).to_pandas_dtype())
    (chunk,) = column.chunks
    if pa.types.is_fixed_size_list(chunk.type):
        flat: Array = chunk.flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(-1, chunk.type.list_size)
    plain: Array = chunk.to_numpy(zero_copy_only=True)
    return plain


def _text(bounds: Array) -> list[Any]:
    return [list(bounds.shape), base64.b64encode(bounds.astype("<f8").tobytes()).decode()]


def _from_text(held: list[Any]) -> Array:
    shape, text = held
    return np.frombuffer(base64.b64decode(text), dtype="<f8").reshape(shape)
