"""What a handler is given besides its job: progress to tell, and word to stop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from api.jobs.board import Board
from api.jobs.record import Job, Progress
from curator.corpus.task_set import GROUP_ROWS, TaskSet

TELL_EVERY_S = 1.0  # between two writes of a job's progress, and two looks for a cancel


# Not Exceptions: no handler of failures on the way (an engine's row that will not score, say) may swallow them.
class CancelledError(BaseException):
    """The end of the job was requested; nothing of it is kept."""


class StoppedError(BaseException):
    """The worker is to stop; the job goes back to the queue."""


class Reporter(Protocol):
    """What a build needs of a running job: what it asks for, and whom to tell how far it is (see Control)."""

    job: Job

    def stage(self, name: str, total: int | None, unit: str) -> None:
        """Begin a stage of the work."""

    def advance(self, done: int) -> None:
        """Say how far the stage is."""


@dataclass
class Control:
    """A running job as its handler sees it; `stopping` says whether the worker was asked to stop."""

    board: Board
    job: Job
    stopping: Callable[[], bool] = lambda: False
    _told_s: float = field(default=0.0)

    def stage(self, name: str, total: int | None, unit: str) -> None:
        """Begin a stage of the work; raises as `advance`."""
        progress = Progress(stage=name, done=0, total=total, unit=unit)
        self.job = self.job.with_event("stage", name, progress=progress)
        self._told_s = 0.0
        self.advance(0)

    def advance(self, done: int) -> None:
        """Say how far the stage is (units done since its beginning), at most once a second.

        Raises CancelledError or StoppedError when the work is to end here.
        """
        if self.stopping():
            raise StoppedError
        if time.monotonic() - self._told_s < TELL_EVERY_S:
            return
        self._told_s = time.monotonic()
        self.check()
        if self.job.progress is not None:
            self.job = self.job.model_copy(update={"progress": self.job.progress.model_copy(update={"done": done})})
        self.board.write(self.job)

    def check(self) -> None:
        """Raise CancelledError or StoppedError when the work is to end here."""
        if self.stopping():
            raise StoppedError
        if self.board.cancel_asked(self.job):
            raise CancelledError


@dataclass(frozen=True)
class WatchedTaskSet(TaskSet):
    """A task set that tells a control of each batch that is read from it."""

    control: Reporter | None = None

    def batches(self, rows: int = GROUP_ROWS, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """As TaskSet.batches; raises what `Control.advance` raises."""
        done = 0
        for batch in super().batches(rows, columns):
            yield batch
            done += batch.num_rows
            if self.control is not None:
                self.control.advance(done)


def task_document(task_set: TaskSet) -> dict[str, object]:
    """What a job's request keeps of a task set beside its rows."""
    return {
        "n_rows": task_set.n_rows,
        "sha256": task_set.sha256,
        "n_rejected": task_set.n_rejected,
        "reject_codes": task_set.reject_codes,
        "sources_sha256": task_set.sources_sha256,
    }


def watched(document: dict[str, object], path: Path, control: Reporter) -> WatchedTaskSet:
    """The task set again, over its rows at `path`."""
    return WatchedTaskSet(path=path, rejects=(), control=control, **document)  # type: ignore[arg-type]
