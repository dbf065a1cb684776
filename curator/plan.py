"""What a mix will be, decided before anything is written: id, counts, chosen rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from curator.config import Recipe
from curator.errors import RecipeError
from curator.filters import Surroundings
from curator.manifest import mix_id, pool_names
from curator.mix import Allocation, allocate, sized
from curator.policy import Policy, check_evictions, policy_sha256
from curator.resolve import PoolData, resolve
from curator.saferows import Drawn
from curator.seeds import child_seed
from curator.selection import IN_EARLIER_POOL, IN_TASK_SET, Selection, select
from curator.snapshot import Scorer
from curator.store import Store
from curator.tasks import TaskSet

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

    Amounts in tokens and pools that fall short tell only when they are drawn how many rows they give; shares of the
    mix then change for the others, which are drawn again until all counts agree. A pool that fell short is asked
    for as much again.
    """
    found: dict[int, int] = {}
    short: dict[int, int] = {}
    shared = _shared_ids(pools, task_set)
    for _ in range(2 * len(pools) + 2):
        allocation = allocate(sized(recipe, found), task_set.n_rows)
        asked = [short.get(place, n_rows) for place, n_rows in enumerate(allocation.n_safe)]
        drawn = _draw_once(recipe, pools, asked, task_set, shared)
        short |= {place: asked[place] for place, item in enumerate(drawn) if item.selection.n_short}
        found = rows_found(recipe, [item.selection for item in drawn])
        allocation = allocate(sized(recipe, found), task_set.n_rows)
        if allocation.n_safe == tuple(len(item.selection.chosen) for item in drawn):
            return allocation, tuple(drawn)
    raise RecipeError(
        f"the pools' amounts do not come to rest with the order {recipe.order}: give them in rows, or use `even`"
    )


def rows_found(recipe: Recipe, selections: Sequence[Selection]) -> dict[int, int]:
    """Rows by place of the pools whose number follows from their corpus and not from the recipe."""
    return {
        place: len(selection.chosen)
        for place, (pool, selection) in enumerate(zip(recipe.pools, selections, strict=True))
        if pool.tokens is not None or selection.n_short
    }


def _draw_once(
    recipe: Recipe, pools: Sequence[PoolData], asked: Sequence[int], task_set: TaskSet, shared: set[str]
) -> list[Drawn]:
    drawn: list[Drawn] = []
    taken: set[str] = set()
    for name, data, n_rows in zip(pool_names(recipe), pools, asked, strict=True):
        exclude = {IN_TASK_SET: shared, **({IN_EARLIER_POOL: taken} if drawn else {})}
        selection = select(
            data.candidates,
            None if data.pool.tokens is not None else n_rows,
            tokens=data.pool.tokens,
            strategy=data.pool.strategy,
            filters=data.pool.filters,
            exclude=exclude,
            around=Surroundings(lambda: _task_texts(task_set), data.evaluations),
            seed=child_seed(recipe.seed, f"select:{name}"),
            when_short=data.pool.when_short,
            max_copies=data.pool.max_copies or 1,
            n_task=task_set.n_rows,
            pool=name,
        )
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
            shared.update(data.candidates.ids.texts(data.candidates.ids.held(own)))
    return shared
