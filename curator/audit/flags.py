"""Rows that an audit flags: the ids that a recipe's inoculation can name (`inoculation.rows`)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.audit.risk import TOP
from curator.errors import BadInputError, MissingError

_READ = ("example_id", "percentile")


def flagged_rows(path: Path, percentile: float = TOP) -> tuple[str, ...]:
    """Ids of the rows whose percentile of risk is at least `percentile`, sorted, each once.

    `path` is what `python -m curator audit --out` wrote. Rows that the audit could not judge are not flagged. Raises
    MissingError without the file, BadInputError for another kind of file and where no row is flagged.
    """
    if not path.is_file():
        raise MissingError(f"there is no audit file {path}")
    try:
        table = pq.read_table(path, columns=list(_READ))
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(
            f"{path} is not an audit's rows, as `python -m curator audit --out FILE` writes them"
        ) from error
    if missing := [name for name in _READ if name not in table.column_names]:
        raise BadInputError(
            f"{path} has no column {', '.join(missing)}: give what `python -m curator audit --out` wrote"
        )
    flagged = flagged_ids(table, percentile)
    if not flagged:
        raise BadInputError(
            f"{path}: no row has a percentile of {percentile:g} or more ({table['percentile'].null_count:,} of "
            f"{table.num_rows:,} rows were not judged); leave the inoculation out or lower the percentile"
        )
    return flagged


def flagged_ids(rows: pa.Table, percentile: float = TOP) -> tuple[str, ...]:
    """The same of an audit's rows at hand; none where no row is flagged."""
    flagged = rows.filter(pc.fill_null(pc.greater_equal(rows["percentile"], percentile), False))
    return tuple(sorted(set(flagged["example_id"].to_pylist())))
