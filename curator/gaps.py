"""Gaps of some rows of a wide table, by the definitions of `sql/`: nothing here computes one.

Each thread has one small in-memory connection that holds the macros; rows go in and out as Arrow, without a copy of
what is not asked for.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

import sql
from curator.columns import Floats
from curator.config import DEFAULT_EPS, Reducer

Losses = npt.NDArray[np.float64]

_local = threading.local()


@dataclass(frozen=True)
class GapSpec:
    """How losses become a gap: what a recipe says of it, `weights` in the order of the misaligned scorers."""

    eps: float = DEFAULT_EPS
    reducer: Reducer = "mean"
    weights: tuple[float, ...] = ()


def definitions() -> str:
    """The statements that gaps follow from, without their comments: part of what a choice is made from."""
    texts = [*map(sql.view_text, sql.MACROS), sql.wide_query("gap").sql]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))


def gaps(
    aligned: Losses, misaligned: Losses, benign: Losses, n_tokens: Floats, spec: GapSpec, only: str | None = None
) -> pa.Table:
    """Columns of `sql/wide/gap.sql` (or place and `only` one of them), in the rows' order.

    `aligned` has shape (n,), `misaligned` (n, K) and `benign` (n, B): mean losses in nats per token, by scorer id, NaN
    where one is missing; `n_tokens` (n,) counts the aligned scorer's response tokens.
    """
    given: dict[str, sql.Value] = {
        "n_misaligned": misaligned.shape[1],
        "n_benign": benign.shape[1],
        "eps": spec.eps,
        "reducer": spec.reducer,
        "weights": list(spec.weights),
    }
    return _run("gap", _rows(aligned, misaligned, benign, n_tokens), given, only)


def score(name: str, aligned: Losses, misaligned: Losses, benign: Losses, n_tokens: Floats, spec: GapSpec) -> Floats:
    """One column of `gaps` as float64 with NaN for null, shape (n,)."""
    return floats(gaps(aligned, misaligned, benign, n_tokens, spec, name)[name])


def bounds(aligned: Losses, misaligned: Losses, size: int) -> Floats:
    """What no gap_rel (eps 1) over `size` of the misaligned scorers exceeds, see `sql/wide/bound.sql`; shape (n,)."""
    nothing = np.zeros((len(aligned), 0))
    rows = _rows(aligned, misaligned, nothing, np.zeros(len(aligned)))
    return floats(_run("bound", rows, {"size": size}, "bound")["bound"])


def floats(column: pa.ChunkedArray | pa.Array) -> Floats:
    """A number column as float64 with one NaN for every null, shape (n_rows,)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not column.null_count:
        known: Floats = column.to_numpy(zero_copy_only=False).astype("<f8", copy=False)
        return known
    known = column.fill_null(0).to_numpy(zero_copy_only=False).astype("<f8")
    return np.where(column.is_null().to_numpy(zero_copy_only=False), np.nan, known)


def _rows(aligned: Losses, misaligned: Losses, benign: Losses, n_tokens: Floats) -> pa.Table:
    columns = {
        "place": pa.array(np.arange(len(aligned), dtype=np.int64)),
        "mean_nll_aligned": pa.array(aligned, from_pandas=True),
        "misaligned": _lists(misaligned),
        "benign": _lists(benign),
        "n_response_tokens": pa.array(n_tokens, from_pandas=True),
    }
    return pa.table(columns)


def _lists(losses: Losses) -> pa.Array:
    """A list for each row, of the losses that are there."""
    there = ~np.isnan(losses)
    ends = np.cumsum(np.count_nonzero(there, axis=1))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(losses[there]))


def _run(name: str, rows: pa.Table, given: Mapping[str, sql.Value], only: str | None) -> pa.Table:
    connection, query = _connection(), sql.wide_query(name)
    connection.register("wide_rows", rows)
    try:
        relation = connection.sql(query.sql, params=query.bind(given))
        found = (relation if only is None else relation.select("place", only)).to_arrow_table()
    finally:
        connection.unregister("wide_rows")
    # DuckDB keeps the order of what it reads, without a promise for every plan; to sort in SQL takes as long again.
    place = found["place"].to_numpy()
    return found if (np.diff(place) > 0).all() else found.sort_by("place")


def _connection() -> duckdb.DuckDBPyConnection:
    found: duckdb.DuckDBPyConnection | None = getattr(_local, "connection", None)
    if found is None:
        found = duckdb.connect(config={"python_enable_replacements": "false"})
        found.execute("set enable_progress_bar = false")  # it draws on stdout, where --json prints
        for macro in sql.MACROS:
            found.execute(sql.view_text(macro))
        _local.connection = found
    return found
