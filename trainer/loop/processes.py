"""Several processes of one run, as `accelerate launch` starts them: one does what must be done once.

The process group and the broadcast are accelerate's. Its `main_process_first` is not used: it lets the other
processes do the same work after the first one, where they are to receive its result, and an error of the first one
leaves them waiting or doing the work themselves. `Team.first` hands the result, or the error, to every process.
accelerate imports torch, so it is imported only where there are several processes.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from curator.errors import BallastError, IntegrityError
from curator.render import Renderer, RenderSettings
from trainer.config import TrainConfig
from trainer.config.options import cache_folder
from trainer.data.cache import RenderCache
from trainer.data.inputs import Inputs, read_inputs

T = TypeVar("T")


class Team:
    """The processes of one run; alone it does nothing, and torch is not loaded.

    `accelerate launch` sets WORLD_SIZE, RANK and the meeting point; the process group is opened on `join`.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))

    @property
    def leads(self) -> bool:
        """Whether this process writes the run folder and talks to the user."""
        return self.rank == 0

    def join(self, *, on_cpu: bool) -> None:
        """Open the process group (gloo on a CPU)."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState(cpu=on_cpu)

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns in the leading process, in all of them; its BallastError is raised in all as well."""
        if self.size == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None]
        if self.leads:
            try:
                outcome = [("result", work())]
            except BallastError as error:
                outcome = [("error", (error.message, error.details))]
        broadcast_object_list(outcome)
        kind, content = outcome[0]
        if kind == "error":
            message, details = content
            raise BallastError(message, details=details)
        result: T = content
        return result

    def leave(self) -> None:
        """Close the process group; without this gloo complains at exit."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


def shared_inputs(config: TrainConfig, weights: str, api_key: str | None, team: Team) -> Inputs:
    """The rows; of several processes the first one renders, and the others read what it kept."""
    cache = RenderCache(cache_folder(config.cache, config.out))
    if team.size > 1 and cache.folder is None:
        cache = RenderCache(config.out / "rows")
    if team.size == 1:
        return read_inputs(config, config.out, weights, api_key, cache)

    def lead() -> tuple[str, Any, Any, RenderSettings]:
        own = read_inputs(config, config.out, weights, api_key, cache)
        return own.cache_key, own.rows, own.warnings, own.renderer.settings

    key, rows, warned, rendering = team.first(lead)
    found = cache.load(key)
    if found is None:
        raise IntegrityError(f"the rendered rows in {cache.folder} cannot be read by every process")
    return Inputs(found[0], rows, Renderer.from_folder(config.model, settings=rendering), warned, key)
