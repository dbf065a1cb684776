"""What a mix will be, decided before anything is written: id, counts, chosen rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from curator.config import Recipe
from curator.manifest import mix_id, pool_names
from curator.mix import Allocation, allocate
from curator.resolve import PoolData, resolve
from curator.saferows import Drawn
from curator.seeds import child_seed
from curator.selection import IN_EARLIER_POOL, IN_TASK_SET, select
from curator.snapshot import Scorer
from curator.store import Store
from curator.tasks import TaskSet


@dataclass(frozen=True)
class MixPlan:
    """A mix's id, its resolved recipe, its counts and the rows drawn from each pool."""

    mix_id: str
    recipe: Recipe
    allocation: Allocation
    drawn: tuple[Drawn, ...]

    @property
    def aligned(self) -> Scorer | None:
        """The first pool's aligned scorer, under whose renderer tokens are counted; None where no pool has one."""
        return next((drawn.data.scorers.aligned for drawn in self.drawn if drawn.data.scorers.aligned), None)


def plan_mix(store: Store, task_set: TaskSet, recipe: Recipe) -> MixPlan:
    """Resolve a recipe and choose its safe rows; nothing is written.

    Raises RecipeError (NotEnoughRowsError, naming what binds) for what cannot be met, and what `resolve` raises.
    """
    resolved, pools = resolve(store, recipe)
    allocation = allocate(resolved, task_set.n_rows)
    drawn = _draw(resolved, pools, allocation, task_set)
    candidates = [data.candidates_sha256 for data in pools]
    return MixPlan(mix_id(resolved, task_set.sha256, candidates), resolved, allocation, tuple(drawn))


def _draw(recipe: Recipe, pools: Sequence[PoolData], allocation: Allocation, task_set: TaskSet) -> list[Drawn]:
    drawn: list[Drawn] = []
    taken: set[str] = set()
    shared = _shared_ids(pools, task_set)
    for name, data, n_rows in zip(pool_names(recipe), pools, allocation.n_safe, strict=True):
        exclude = {IN_TASK_SET: shared, **({IN_EARLIER_POOL: taken} if drawn else {})}
        selection = select(
            data.candidates,
            n_rows,
            strategy=data.pool.strategy.name,  # type: ignore[arg-type]
            filters=data.pool.filters,
            exclude=exclude,
            seed=child_seed(recipe.seed, f"select:{name}"),
            n_task=task_set.n_rows,
            pool=name,
        )
        taken = taken | {data.candidates.ids[i] for i in selection.chosen}
        drawn.append(Drawn(name, data, selection))
    return drawn


def _shared_ids(pools: Sequence[PoolData], task_set: TaskSet) -> set[str]:
    """Pool ids that are in the task set too; memory grows with the pools, not with the task set."""
    known = {item for data in pools for item in data.candidates.ids}
    shared: set[str] = set()
    for batch in task_set.batches(columns=["example_id"]):
        shared.update(known.intersection(batch.column("example_id").to_pylist()))
    return shared
