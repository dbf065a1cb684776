"""Several processes of one run, as `accelerate launch` starts them: who writes, and what the others receive."""

import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from curator.errors import BallastError

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
                outcome = [("result", pickle.dumps(work()))]
            except BallastError as error:
                outcome = [("error", pickle.dumps((error.message, error.details)))]
        broadcast_object_list(outcome)
        kind, content = outcome[0]
        if kind == "error":
            message, details = pickle.loads(content)
            raise BallastError(message, details=details)
        result: T = pickle.loads(content)
        return result

    def leave(self) -> None:
        """Close the process group; without this gloo complains at exit."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()
