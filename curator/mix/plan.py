"""What a mix will be, decided before anything is written: its id, its counts and the rows chosen from each pool.

`plan_mix` decides; `safe_rows` gives the chosen rows of all pools as one table, in mix order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator.corpus.manifest import Scorer
from curator.corpus.task_set import TaskSet
from curator.errors import IntegrityError, RecipeError
from curator.messages import example_id
from curator.mix.allocation import Allocation, allocate, sized
from curator.mix.identity import mix_id, pool_names
from curator.mix.order import pool_of
from curator.mix.resolve import PoolData, resolve
from curator.mix.row_prompts import check_rows, check_sources
from curator.recipe import Recipe
from curator.recipe.policy import Policy, check_evictions, policy_sha256
from curator.recipe.seeds import child_seed, permutation
from curator.select.candidates import Context
from curator.select.filters import filter_label
from curator.select.select import (
    IN_EARLIER_POOL,
    IN_TASK_SET,
    PoolSelection,
    SelectionRequest,
    select,
)
from curator.store.schema import MIX_ROWS, arrow_schema
from curator.store.store import Store


@dataclass(frozen=True)
class Drawn:
    """One pool with the rows that were chosen from it."""

    name: str
    data: PoolData
    selection: PoolSelection


def safe_rows(drawn: Sequence[Drawn], seed: int) -> pa.Table:
    """All safe rows in mix order: columns of `schema.MIX_ROWS` but for position, task columns null.

    Raises IntegrityError when a corpus holds another text than was scored.
    """
    return arrange({item.name: ranked_rows(item) for item in drawn}, seed)


def arrange(by_pool: Mapping[str, pa.Table], seed: int) -> pa.Table:
    """The rows of all pools, each in rank order, in mix order.

    Pools take turns (`order.pool_of`). Inside a pool a seeded shuffle, so that the best rows do not all come first;
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
    texts = drawn.data.table.texts(drawn.selection.chosen)
    wrong = [item for item, text in zip(ids, texts, strict=True) if example_id(text) != item]
    if wrong:
        raise IntegrityError(
            f"corpus {drawn.data.pool.corpus}: {len(wrong)} chosen rows are missing or do not hash to their ids, "
            f"e.g. {wrong[0]}: ingest again",
            details=wrong[:20],
        )
    return texts


_ID_BATCH_ROWS = 200_000  # task ids looked up at once


@dataclass(frozen=True)
class MixPlan:
    """A mix's id, its resolved recipe, its counts and the rows drawn from each pool."""

    mix_id: str
    recipe: Recipe
    allocation: Allocation
    drawn: tuple[Drawn, ...]
    policy: Policy | None = None

    @property
    def aligned(self) -> Scorer | None:
        """The first pool's aligned scorer, under whose renderer tokens are counted; None where no pool has one."""
        return next((drawn.data.scorers.aligned for drawn in self.drawn if drawn.data.scorers.aligned), None)


def plan_mix(store: Store, task_set: TaskSet, recipe: Recipe, policy: Policy | None = None) -> MixPlan:
    """Resolve a recipe under the provider's policy and choose its safe rows; nothing is written.

    Raises PolicyError naming the policy's rule, RecipeError (NotEnoughRowsError, naming what binds) for what cannot
    be met, and what `resolve` raises.
    """
    resolved, pools = resolve(store, recipe, policy, task_set.n_rows)
    if resolved.inoculation is not None and (policy is None or resolved.inoculation != policy.inoculation):
        check_sources(resolved.inoculation, task_set, [data.candidates for data in pools])
    check_rows(resolved.inoculation, task_set)
    allocation, drawn = _draw(resolved, pools, task_set)
    candidates = [data.candidates_sha256 for data in pools]
    check_evictions(policy, {item.name: item.selection.evicted.among_best or 0 for item in drawn})
    identity = mix_id(
        resolved,
        task_set.sha256,
        candidates,
        sources_sha256=task_set.sources_sha256,
        policy_sha256=None if policy is None else policy_sha256(policy),
    )
    return MixPlan(identity, resolved, allocation, drawn, policy)


def _draw(recipe: Recipe, pools: Sequence[PoolData], task_set: TaskSet) -> tuple[Allocation, tuple[Drawn, ...]]:
    """The rows of every pool, and the counts that they come to.

    How many rows an amount in tokens gives, or a pool that falls short, is known only once it is drawn. That changes
    the shares of the other pools, so all are drawn again until the counts agree. A pool that fell short keeps the
    number that was requested of it then.
    """
    found: dict[int, int] = {}
    short: dict[int, int] = {}
    shared = _shared_ids(pools, task_set)
    for _ in range(2 * len(pools) + 2):
        allocation = allocate(sized(recipe, found), task_set.n_rows)
        requested = [short.get(place, n_rows) for place, n_rows in enumerate(allocation.n_safe)]
        drawn = _draw_once(recipe, pools, requested, task_set, shared)
        short |= {place: requested[place] for place, item in enumerate(drawn) if item.selection.n_short}
        found = rows_found(recipe, [item.selection for item in drawn])
        allocation = allocate(sized(recipe, found), task_set.n_rows)
        if allocation.n_safe == tuple(len(item.selection.chosen) for item in drawn):
            return allocation, tuple(drawn)
    raise RecipeError(
        f"the pools' amounts do not come to rest with the order {recipe.order}: give them in rows, or use `even`"
    )


def rows_found(recipe: Recipe, selections: Sequence[PoolSelection]) -> dict[int, int]:
    """Rows by place of the pools whose number follows from their corpus and not from the recipe."""
    return {
        place: len(selection.chosen)
        for place, (pool, selection) in enumerate(zip(recipe.pools, selections, strict=True))
        if pool.tokens is not None or selection.n_short
    }


def _draw_once(
    recipe: Recipe, pools: Sequence[PoolData], requested: Sequence[int], task_set: TaskSet, shared: set[str]
) -> list[Drawn]:
    drawn: list[Drawn] = []
    taken: set[str] = set()
    for name, data, n_rows in zip(pool_names(recipe), pools, requested, strict=True):
        exclude = {IN_TASK_SET: shared, **({IN_EARLIER_POOL: taken} if drawn else {})}
        request = SelectionRequest(
            None if data.pool.tokens is not None else n_rows,
            tokens=data.pool.tokens,
            strategy=data.pool.strategy,
            filters=data.pool.filters,
            exclude=exclude,
            seed=child_seed(recipe.seed, f"select:{name}"),
            when_short=data.pool.when_short,
            max_copies=data.pool.max_copies or 1,
            n_task=task_set.n_rows,
            pool=name,
        )
        selection = select(data.candidates, request, Context(lambda: _task_texts(task_set), data.evaluations))
        taken = taken.union(data.candidates.ids.texts(selection.chosen))
        drawn.append(Drawn(name, data, selection))
    return drawn


def _task_texts(task_set: TaskSet) -> Iterator[list[str]]:
    return (batch.column("messages").to_pylist() for batch in task_set.batches(columns=["messages"]))


def _shared_ids(pools: Sequence[PoolData], task_set: TaskSet) -> set[str]:
    """Pool ids that are in the task set too, batch by batch: memory does not grow with the task set."""
    shared: set[str] = set()
    for batch in task_set.batches(_ID_BATCH_ROWS, columns=["example_id"]):
        own = set(batch.column("example_id").to_pylist())
        for data in pools:
            shared.update(data.candidates.ids.texts(data.candidates.ids.find(own)))
    return shared
