"""The chosen rows of all pools as one table in the order in which the mix uses them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator.arrow_tables import arrow_schema
from curator.canonical import example_id
from curator.errors import IntegrityError
from curator.filters import filter_label
from curator.orders import pool_of
from curator.resolve import PoolData
from curator.schema import MIX_ROWS
from curator.seeds import child_seed, permutation
from curator.selection import Selection


@dataclass(frozen=True)
class Drawn:
    """One pool with the rows that were chosen from it."""

    name: str
    data: PoolData
    selection: Selection


def safe_rows(drawn: Sequence[Drawn], seed: int) -> pa.Table:
    """All safe rows in mix order: columns of `schema.MIX_ROWS` but for position, task columns null.

    Raises IntegrityError when a corpus holds another text than was scored.
    """
    return arrange({item.name: ranked_rows(item) for item in drawn}, seed)


def arrange(by_pool: Mapping[str, pa.Table], seed: int) -> pa.Table:
    """The rows of all pools, each in rank order, in mix order.

    Pools take turns (`orders.pool_of`). Inside a pool a seeded shuffle, so that the best rows do not all come first;
    `rank` tells how each was ranked.
    """
    if not by_pool:
        return safe_schema().empty_table()
    tables = [
        table.take(pa.array(permutation(len(table), child_seed(seed, f"order:{name}"))))
        for name, table in by_pool.items()
    ]
    pools = pool_of([len(table) for table in tables])
    starts = np.cumsum([0, *(len(table) for table in tables)])
    index = np.empty(len(pools), dtype=np.int64)
    for pool in range(len(tables)):
        places = np.flatnonzero(pools == pool)
        index[places] = starts[pool] + np.arange(len(places))
    return pa.concat_tables(tables).take(pa.array(index))


def ranked_rows(drawn: Drawn) -> pa.Table:
    """One pool's chosen rows in rank order, columns as `safe_rows`."""
    n_rows = len(drawn.selection.chosen)
    rows = drawn.data.rows(drawn.selection.chosen)
    ranks = np.arange(n_rows) % max(1, drawn.selection.n_distinct) + 1  # a copy has the rank of its row
    pool, ranked = drawn.data.pool, drawn.selection.ranked
    messages = _texts(drawn, rows["example_id"].to_pylist())
    passed = [filter_label(spec) for spec in pool.filters]
    given: dict[str, object] = {
        "origin": ["safe"] * n_rows,
        "example_id": rows["example_id"],
        "messages": messages,
        "pool": [drawn.name] * n_rows,
        "corpus": [pool.corpus] * n_rows,
        "revision": [pool.revision] * n_rows,
        "source": rows["source"],
        "rank": ranks.tolist() if ranked else None,
        "score": rows[pool.score.name] if ranked else None,
        "gap_abs": rows["gap_abs"],
        "gap_rel": rows["gap_rel"],
        "losses": rows["losses"],
        "filters_passed": [passed] * n_rows,
    }
    schema = safe_schema()
    return pa.table([_column(given.get(field.name), field.type, n_rows) for field in schema], schema)


def safe_schema() -> pa.Schema:
    """Columns of `safe_rows`: a mix's but for position, all nullable."""
    return pa.schema([field.with_nullable(True) for field in arrow_schema(MIX_ROWS) if field.name != "position"])


def _column(values: object, kind: pa.DataType, n_rows: int) -> pa.Array | pa.ChunkedArray:
    if values is None:
        return pa.nulls(n_rows, kind)
    return values.cast(kind) if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def _texts(drawn: Drawn, ids: Sequence[str]) -> list[str]:
    """Canonical messages of the chosen rows; raises IntegrityError for a text that does not hash to its id."""
    texts = drawn.data.kept.texts(drawn.selection.chosen)
    wrong = [item for item, text in zip(ids, texts, strict=True) if example_id(text) != item]
    if wrong:
        raise IntegrityError(
            f"corpus {drawn.data.pool.corpus}: {len(wrong)} chosen rows are missing or do not hash to their ids, "
            f"e.g. {wrong[0]}: ingest again",
            details=wrong[:20],
        )
    return texts
