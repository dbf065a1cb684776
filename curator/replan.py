"""Planning a stored mix once more, from its own manifest and rows: what became of each candidate, and why."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import BallastError
from curator.manifest import Manifest
from curator.mixrows import mix_batches
from curator.plan import MixPlan, plan_mix
from curator.rowcheck import TASK_COLUMNS
from curator.rowprompts import originals
from curator.saferows import Drawn
from curator.schema import TASK_ROWS
from curator.store import Store, arrow_schema
from curator.tasks import TaskSet

COLUMNS = (*TASK_COLUMNS, "example_id", "original_id")


@contextmanager
def task_set_of(store: Store, tenant: str, manifest: Manifest) -> Iterator[TaskSet]:
    """The task set that a mix was made from, brought back from the mix's rows; it lasts as long as the block.

    Ids, order and labels are the user's; rejected records are gone, but counted. Task rows are held in memory at once.
    """
    n_rows = manifest.n_rows // manifest.recipe.epochs
    parts = []
    for batch in mix_batches(store, tenant, manifest.mix_id, columns=COLUMNS):
        first, n_rows = batch.slice(0, max(n_rows, 0)), n_rows - len(batch)
        parts.append(_own_rows(first, manifest))
    rows = pa.concat_tables(parts).sort_by("ordinal")
    with TemporaryDirectory(prefix="ballast-") as folder:
        path = Path(folder) / f"task-rows-{secrets.token_hex(4)}.parquet"
        pq.write_table(rows, path)
        task = manifest.task
        yield TaskSet(path, task.n_rows, task.sha256, task.n_rejected, task.reject_codes, (), task.sources_sha256)


def _own_rows(rows: pa.RecordBatch, manifest: Manifest) -> pa.Table:
    rows = rows.filter(pa.array(np.logical_not(rows.column("ordinal").is_null().to_numpy(zero_copy_only=False))))
    texts = originals(manifest.recipe.inoculation, rows)
    ids = zip(rows["example_id"].to_pylist(), rows["original_id"].to_pylist(), strict=True)
    columns = {
        "example_id": [original or own for own, original in ids],
        "ordinal": rows["ordinal"].to_pylist(),
        "messages": [own or text for own, text in zip(texts, rows["messages"].to_pylist(), strict=True)],
        "source": rows["source"].to_pylist(),
    }
    schema = arrow_schema(TASK_ROWS)
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)


class Reasons:
    """Why a mix does not hold a pool row, by its plan; `unknown` is set when the plan cannot be made again."""

    def __init__(self, plan: MixPlan | None, unknown: str | None = None) -> None:
        self.unknown = unknown
        drawn = () if plan is None else plan.drawn
        self._pools: list[tuple[Drawn, Mapping[str, int]]] = [
            (item, {key: i for i, key in enumerate(item.data.candidates.ids)}) for item in drawn
        ]

    def absent(self, example_id: str) -> str:
        """One reason for each pool that holds the row, or that none does."""
        if self.unknown is not None:
            return self.unknown
        found = [_absent(item, places[example_id]) for item, places in self._pools if example_id in places]
        return "; ".join(found) or "no pool of that mix holds the row"


def _absent(drawn: Drawn, candidate: int) -> str:
    reason = drawn.selection.screening.reason_of(candidate)
    if reason is not None:
        return f"pool {drawn.name} dropped it: {reason}"
    if not drawn.selection.ranked:
        return f"pool {drawn.name} did not draw it"
    scores, chosen = drawn.data.candidates.scores, drawn.selection.chosen
    lowest = f" of at least {scores.at(chosen).min():.4g}" if len(chosen) else ""
    by = f"by {drawn.data.pool.score.name}: it has {scores.at(np.array([candidate]))[0]:.4g}"
    return f"pool {drawn.name} chose {len(chosen):,} rows{lowest} {by}"


def reasons(store: Store, tenant: str, manifest: Manifest) -> Reasons:
    """The reasons of a stored mix, where the store still gives the same plan."""
    try:
        with task_set_of(store, tenant, manifest) as task_set:
            policy = None if manifest.policy is None else manifest.policy.policy
            plan = plan_mix(store, task_set, manifest.recipe, policy)
    except BallastError as error:
        return Reasons(None, f"unknown: the mix cannot be planned again ({error.message})")
    if plan.mix_id != manifest.mix_id:
        return Reasons(None, "unknown: the store's scores have changed since that mix was made")
    return Reasons(plan)
