"""From a scored corpus to the rows chosen from it.

A pool is one Polars frame: every row of a corpus revision beside its losses (`pool_table`, made ahead by
`publish_pool`). `select` takes its rows as `Candidates` with a `SelectionRequest` (filters, strategy, amount), and
gives a `PoolSelection`: the chosen rows, best first, and for every other row the reason why not. `filters` drops rows
by the recipe's filters and then those without a loss (`no_gap`), `strategies` ranks what is left. Gaps: see `sql/`.
"""

from curator.select.candidates import Candidates, Context
from curator.select.filters import FilterResult
from curator.select.pool import (
    PoolCache,
    PoolTable,
    pool_table,
    publish_pool,
)
from curator.select.select import PoolSelection, SelectionRequest, select

__all__ = [
    "Candidates",
    "Context",
    "FilterResult",
    "PoolCache",
    "PoolSelection",
    "PoolTable",
    "SelectionRequest",
    "pool_table",
    "publish_pool",
    "select",
]
