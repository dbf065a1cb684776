"""Gaps of some rows of a wide table, by the definitions of `sql/`: nothing here computes one.

Each thread has two small in-memory connections that hold the macros; rows go in as Arrow and
come out as numpy arrays.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

import sql
from curator.recipe import DEFAULT_EPS, Reducer

Losses = npt.NDArray[np.float64]

_FEW_ROWS = 200_000
_local = threading.local()


@dataclass(frozen=True)
class GapSpec:
    """How losses become a gap: what a recipe says of it, `weights` in the order of the misaligned scorers."""

    eps: float = DEFAULT_EPS
    reducer: Reducer = "mean"
    weights: tuple[float, ...] = ()


def warm_up() -> None:
    """Open this thread's connection for few rows, which otherwise the first gap does."""
    _connection(many=False)


def definitions() -> str:
    """The statements that gaps follow from, without their comments: part of what a choice is made from."""
    texts = [*map(sql.view_text, sql.MACROS), sql.wide_query("gap").sql]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))


def gaps(aligned: Losses, misaligned: Losses, benign: Losses, n_tokens: Losses, spec: GapSpec) -> dict[str, Losses]:
    """Columns of `sql/wide/gap.sql` in the rows' order, NaN for null; each has shape (n,).

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
    return _run("gap", _rows(aligned, misaligned, benign, n_tokens), given)


def score(name: str, aligned: Losses, misaligned: Losses, benign: Losses, n_tokens: Losses, spec: GapSpec) -> Losses:
    """One column of `gaps`."""
    return gaps(aligned, misaligned, benign, n_tokens, spec)[name]


def bounds(aligned: Losses, misaligned: Losses, size: int) -> Losses:
    """What no gap_rel (eps 1) over `size` of the misaligned scorers exceeds, see `sql/wide/bound.sql`; shape (n,)."""
    nothing = np.zeros((len(aligned), 0))
    rows = _rows(aligned, misaligned, nothing, np.zeros(len(aligned)))
    return _run("bound", rows, {"size": size})["bound"]


def _rows(aligned: Losses, misaligned: Losses, benign: Losses, n_tokens: Losses) -> pa.Table:
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


def _run(name: str, rows: pa.Table, given: Mapping[str, sql.Value]) -> dict[str, Losses]:
    connection, query = _connection(many=len(rows) > _FEW_ROWS), sql.wide_query(name)
    connection.register("wide_rows", rows)
    try:
        found = connection.execute(query.sql, query.bind(given)).fetchnumpy()
    finally:
        connection.unregister("wide_rows")
    # DuckDB keeps the order of what it reads, without a promise for every plan; to sort in SQL takes as long again.
    place = np.asarray(found.pop("place"))
    order = None if (np.diff(place) > 0).all() else np.argsort(place)
    return {name: _filled(column, order) for name, column in found.items()}


def _filled(column: npt.NDArray[np.generic], order: npt.NDArray[np.int64] | None) -> Losses:
    plain: Losses = np.ma.filled(column.astype("<f8", copy=False), np.nan)
    return plain if order is None else plain[order]


def _connection(*, many: bool) -> duckdb.DuckDBPyConnection:
    """This thread's connection: with one thread for few rows, for which others take longer to wake than to work."""
    name = "many" if many else "few"
    found: duckdb.DuckDBPyConnection | None = getattr(_local, name, None)
    if found is None:
        found = duckdb.connect(config={"python_enable_replacements": "false"} | ({} if many else {"threads": 1}))
        found.execute("set enable_progress_bar = false")  # it draws on stdout, where --json prints
        for macro in sql.MACROS:
            found.execute(sql.view_text(macro))
        setattr(_local, name, found)
    return found
