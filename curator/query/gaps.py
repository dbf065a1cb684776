"""Gaps of some rows of a pool, by the definitions of `sql/`: nothing here computes one.

Losses go into DuckDB through Arrow and gaps come back as Polars columns.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

import sql
from curator.query.database import Connection, connect
from curator.recipe import DEFAULT_EPS, Reducer

GAP_COLUMNS = (
    "mean_nll_aligned", "mean_nll_misaligned", "mean_nll_benign", "gap_abs", "gap_rel", "gap_contrast", "sum_gap",
)  # fmt: skip
# Nats per token (gap_rel: a ratio): gaps that lie closer together than this do not tell rows apart. Engines and batch
# shapes alone move a bfloat16 loss by about as much.
NO_SIGNAL = 0.01
# Why no row of a corpus has a score though it has gaps.
WHY_NULL = {"gap_contrast": "it takes a complete benign scorer (a twin of a misaligned model) of the same measure"}
_SLICE_ROWS = 1 << 20  # rows whose losses are copied at once


@dataclass(frozen=True)
class GapSpec:
    """How losses become a gap: what a recipe says of it, `weights` in the order of the misaligned scorers."""

    eps: float = DEFAULT_EPS
    reducer: Reducer = "mean"
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Losses:
    """Mean losses of some rows in nats per token, null where one is missing; a column for each scorer, by scorer id.

    `n_tokens` counts the aligned scorer's response tokens.
    """

    aligned: pl.Series
    misaligned: pl.DataFrame
    benign: pl.DataFrame
    n_tokens: pl.Series

    def slice(self, start: int, n: int) -> "Losses":
        """Some of the rows."""
        return Losses(
            self.aligned.slice(start, n), self.misaligned.slice(start, n), self.benign.slice(start, n),
            self.n_tokens.slice(start, n),
        )  # fmt: skip


@dataclass(frozen=True)
class PoolGaps:
    """Every row of a corpus with its gap, as pools hold them: a table for each complete aligned scorer, by its id.

    Columns: those of `sql/wide/gap_rows.sql`. `n_misaligned` counts the scorers of each gap, by the same ids.
    """

    corpus: str
    hold_out: tuple[str, ...]
    eps: float
    tables: Mapping[str, pa.Table]
    n_misaligned: Mapping[str, int]

    def replace_view(self, connection: Connection) -> None:
        """Have `gap_rows` of a connection read these rows instead of joining losses anew; the gaps are the same."""
        relation = None
        for place, (aligned_id, table) in enumerate(self.tables.items()):
            connection.register(f"pool_gaps_{place}", table)
            key = {"corpus": self.corpus, "aligned_id": aligned_id, "n_misaligned": self.n_misaligned[aligned_id]}
            constants = (duckdb.ConstantExpression(value).alias(name) for name, value in key.items())
            part = connection.table(f"pool_gaps_{place}").select(*constants, duckdb.StarExpression())
            relation = part if relation is None else relation.union(part)
        assert relation is not None, "a corpus without an aligned scorer has no gap"
        relation.create_view("pool_gaps")
        choice = {"held_out": [sorted(set(self.hold_out))], "eps": [self.eps]}
        schema = pa.schema([("held_out", pa.list_(pa.string())), ("eps", pa.float64())])
        connection.from_arrow(pa.table(choice, schema=schema)).to_table("pool_choice")
        connection.execute(sql.wide_query("gap_rows").sql)


@cache  # files of the package, which every mix reads
def definitions() -> str:
    """The statements that gaps follow from, without their comments: part of what a choice is made from."""
    texts = [*map(sql.view_text, sql.DEFINITIONS), sql.wide_query("gap").sql]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))


class Gaps:
    """A connection that holds the macros of `sql/`, opened when first used; for any number of threads, in turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @cached_property
    def _connection(self) -> Connection:
        return connect(None)

    def columns(self, losses: Losses, spec: GapSpec, names: Sequence[str] = GAP_COLUMNS) -> pl.DataFrame:
        """Columns of `sql/wide/gap.sql` in the rows' order, null where a row lacks what they need."""
        given: dict[str, sql.Value] = {
            "n_misaligned": losses.misaligned.width,
            "n_benign": losses.benign.width,
            "eps": spec.eps,
            "reducer": spec.reducer,
            "weights": list(spec.weights),
        }
        n_rows = len(losses.aligned)
        starts = range(0, max(n_rows, 1), _SLICE_ROWS)
        pieces = [self._run("gap", _rows(losses.slice(start, _SLICE_ROWS)), given, names) for start in starts]
        return pl.concat(pieces, rechunk=True)

    def highest(self, aligned: pl.Series, misaligned: pl.DataFrame) -> pl.Series:
        """What no gap_rel (eps 1) over any of the misaligned scorers exceeds, see `sql/wide/bound.sql`."""
        nothing = Losses(aligned, misaligned, pl.DataFrame(), pl.repeat(None, len(aligned), dtype=pl.Int32, eager=True))
        starts = range(0, max(len(aligned), 1), _SLICE_ROWS)
        pieces = [self._run("bound", _rows(nothing.slice(start, _SLICE_ROWS)), {}, ["bound"]) for start in starts]
        return pl.concat(pieces, rechunk=True)["bound"]

    def means(self, nll_sum: pl.Series, n_response_tokens: pl.Series) -> pl.Series:
        """Each row's mean loss, see `sql/wide/loss.sql`."""
        rows = {"place": _places(len(nll_sum)), "nll_sum": nll_sum, "n_response_tokens": n_response_tokens}
        table = pa.table({name: column.to_arrow() for name, column in rows.items()})
        return self._run("loss", table, {}, ["mean_nll"])["mean_nll"]

    def _run(self, name: str, rows: pa.Table, given: Mapping[str, sql.Value], names: Sequence[str]) -> pl.DataFrame:
        query = sql.wide_query(name)
        with self._lock:
            connection = self._connection
            connection.register("wide_rows", rows)
            try:
                table = connection.sql(query.sql, params=query.bind(given) or None).to_arrow_table()
            finally:
                connection.unregister("wide_rows")
        found = pl.from_arrow(table.select(["place", *names]))
        assert isinstance(found, pl.DataFrame)
        # DuckDB keeps the order of what it reads, without a promise for every plan; to sort in SQL takes longer.
        if not found["place"].is_sorted():
            found = found.sort("place")
        return found.select(pl.col(names).fill_nan(None))


def _rows(losses: Losses) -> pa.Table:
    """The table `wide_rows` of `sql/wide`."""
    return pa.table(
        {
            "place": _places(len(losses.aligned)).to_arrow(),
            "mean_nll_aligned": losses.aligned.to_arrow(),
            "misaligned": _lists(losses.misaligned, len(losses.aligned)),
            "benign": _lists(losses.benign, len(losses.aligned)),
            "n_response_tokens": losses.n_tokens.to_arrow(),
        }
    )


def _places(n_rows: int) -> pl.Series:
    return pl.int_range(n_rows, dtype=pl.Int64, eager=True)


def _lists(losses: pl.DataFrame, n_rows: int) -> pa.Array:
    """A list for each row, of the losses that are there. By numpy, since `pl.concat_list` takes ten times as long."""
    values = losses.to_numpy() if losses.width else np.zeros((n_rows, 0))
    there = ~np.isnan(values)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.count_nonzero(there, axis=1))])
    # Not by pa.array, which imports pandas for an array of numpy where that is installed: half a second.
    return pa.LargeListArray.from_arrays(*(pl.Series(part).to_arrow() for part in (offsets, values[there])))
