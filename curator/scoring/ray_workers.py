"""Blocks of a corpus scored by engine actors on Ray: one machine's cores or GPUs, or a cluster's.

Each actor loads the engine once and scores one block after another with the same code as a run without Ray, into the
same part files; which parts are missing is asked of the store, so a run goes on with or without Ray. An actor that dies
is replaced and its block given out again: the note that it left makes the next one go row by row (`attempts`).
"""

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import MissingDependencyError, ScoringError
from curator.scoring.blocks import Block
from curator.scoring.engines.base import Engine
from curator.scoring.faults import MAX_DEATHS, declare_dead
from curator.scoring.worker import BlockDone, BlockScorer, LazyEngine, Meter, ScorerTask
from curator.store.store import Store

# Deaths with no row scored in between before the run ends, so that an engine which kills every process does not have
# all rows marked one by one. A deadly row costs one death in company and `MAX_DEATHS` alone.
_MAX_DEATHS_IN_A_ROW = 3 * MAX_DEATHS


@dataclass(frozen=True)
class RayPlan:
    """`workers` actors with `cpus` cores and `gpus` GPUs each.

    `address` None is the cluster that RAY_ADDRESS names, else a Ray of its own on this machine.
    """

    workers: int
    cpus: int = 1
    gpus: int = 0
    address: str | None = None


class RayWorkers:
    """`run.Workers` over Ray actors; model folder and store must be reachable under the same names on every node."""

    def __init__(self, plan: RayPlan, worker: BlockScorer, model_dir: Path, launch: Callable[[], Engine]) -> None:
        self._ray, self._plan = _start(plan), plan
        actor = self._ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_restarts=0)(_Worker)
        setting = (store_root(worker.store), worker.task, model_dir.absolute(), launch)
        self._new: Callable[[str], Any] = lambda name: actor.remote(*setting, name)
        self._store, self._folder = worker.store, worker.task.folder
        self._deaths = 0

    def score(self, blocks: Iterable[Block]) -> Iterator[BlockDone]:
        """The outcome of each block, in the order in which they are finished."""
        waiting: deque[Block] = deque()
        source, busy = iter(blocks), {}
        idle = [self._hired() for _ in range(self._plan.workers)]
        while True:
            while idle:
                block = waiting.popleft() if waiting else next(source, None)
                if block is None:
                    break
                hand = idle.pop()
                busy[hand.actor.score.remote(block)] = (hand, block)
            if not busy:
                return
            (done, *_), _ = self._ray.wait(list(busy), num_returns=1)
            hand, block = busy.pop(done)
            try:
                found: BlockDone = self._ray.get(done)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
                self._count_death(error)
                declare_dead(self._store, self._folder, block.ids, hand.name)
                waiting.append(block)
                idle.append(self._hired())
                continue
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except self._ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())[:300]
                raise ScoringError(f"Ray failed ({type(error).__name__}): {reason}. Run the command again") from error
            idle.append(hand)
            if found.n_scored:
                self._deaths = 0
            yield found

    def _hired(self) -> "_Hand":
        name = secrets.token_hex(8)
        return _Hand(name, self._new(name))

    def close(self) -> None:
        """End the actors, and Ray where it was started here; the memory of their engines is free then."""
        self._ray.shutdown()

    def _count_death(self, error: Exception) -> None:
        self._deaths += 1
        if self._deaths > _MAX_DEATHS_IN_A_ROW + self._plan.workers:
            reason = " ".join(str(error).split())[:300]
            raise ScoringError(
                f"{self._deaths} workers died and no row was scored in between; last: {reason}. What is finished "
                "stays; look at the workers' memory, and run the command again"
            )


@dataclass(frozen=True)
class _Hand:
    """An actor, and its name in the notes of `attempts`."""

    name: str
    actor: Any


class _Worker:
    """One actor: a block scorer with an engine of its own."""

    def __init__(self, root: str, task: ScorerTask, model_dir: Path, launch: Callable[[], Engine], name: str) -> None:
        from curator.render import Renderer

        store, request = Store(root).open(create=False), task.request
        renderer = Renderer.from_folder(model_dir, settings=request.rendering)
        meter = Meter(request.price_per_hour)
        self._scorer = BlockScorer(store, task, renderer, LazyEngine(launch, request), meter, name)

    def score(self, block: Block) -> BlockDone:
        """Score one block into its part."""
        return self._scorer.score(block)


def store_root(store: Store) -> str:
    """What another process opens the same store with."""
    return store.base if store.local_path(".") is not None else str(store.filesystem.unstrip_protocol(store.base))


def _start(plan: RayPlan) -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(f"--engine ray needs Ray: pip install 'ballast-mix[ray]' ({error})") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers on a machine that does other work
    if not ray.is_initialized():
        address = plan.address or os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = {"include_dashboard": False, "num_cpus": plan.workers * plan.cpus}
        ray.init(address=address, logging_level="warning", log_to_driver=False, **({} if address else own))
    return ray
