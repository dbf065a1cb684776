"""Every pool row's outcome, for people who ask why a row is not in their mix."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import StoreError
from curator.mix.plan import Drawn, MixPlan

SCHEMA = pa.schema(
    [
        pa.field("pool", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("chosen", pa.bool_(), nullable=False),
        pa.field("score", pa.float64()),
    ]
)


def row_reasons(plan: MixPlan) -> pa.Table:
    """One row for each candidate of each pool, by pool and id.

    `reason` is the first rule that left it out, null for rows that could be drawn; `chosen` rows are in the mix;
    `score` is what the recipe ranks by, null without a gap.
    """
    return pa.concat_tables([SCHEMA.empty_table(), *(_of_pool(drawn) for drawn in plan.drawn)])


def write_reasons(plan: MixPlan, path: Path) -> None:
    """`row_reasons` as a Parquet file; raises StoreError when it cannot be written."""
    try:
        pq.write_table(row_reasons(plan), path, compression="zstd")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def _of_pool(drawn: Drawn) -> pa.Table:
    candidates, rows = drawn.data.candidates, np.arange(len(drawn.data.candidates))
    columns = {
        "pool": pl.repeat(drawn.name, len(rows), eager=True),
        "example_id": pl.Series(candidates.ids.texts(rows)),
        "reason": drawn.selection.result.reason_column,
        "chosen": candidates.mask(drawn.selection.chosen),
        "score": candidates.scores.column,
    }
    return pl.DataFrame(columns).with_columns(pl.col("reason").cast(pl.String)).to_arrow().cast(SCHEMA)
