"""Taking jobs: one at a time, under the job's lock, as long as the worker runs.

Which jobs there are is read from the board alone. A message of the queue makes an idle worker look at once; without one
it looks every five seconds, for jobs whose message was lost and for running ones whose lock is free: their worker died,
and the job begins again.
"""

import contextlib
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.jobs.board import INPUT_FILE, Board, job_path
from api.jobs.control import CancelledError, Control, StoppedError
from api.jobs.queue import JobQueue
from api.jobs.record import Job, JobError, JobKind
from curator.console import say
from curator.errors import BallastError, IntegrityError, StoreError
from curator.store.scratch import Scratch, sweep_scratch
from curator.store.store import Store
from curator.store.usage import UsageLog

if TYPE_CHECKING:  # a worker without a port needs no prometheus_client
    from api.jobs.metrics import WorkerMetrics

Handler = Callable[[Store, Path, Control], dict[str, Any]]
MAX_ATTEMPTS = 3
POLL_S = 0.1  # between two looks into the queue
SCAN_S = 5.0  # between two looks at the board
PAUSE_S = 30.0  # before a job that the store failed is tried again
_INTERNAL = "the service failed; quote the job's id when you report it"


@dataclass
class Worker:
    """Does jobs of the kinds that it has handlers for, and calls `on_end` with each that has ended.

    `stopping` becomes true when it is to end.
    """

    store: Store
    queue: JobQueue
    handlers: Mapping[JobKind, Handler]
    stopping: bool = False
    n_done: int = 0
    metrics: "WorkerMetrics | None" = None
    on_end: Callable[[Job], None] | None = None
    usage: UsageLog = field(init=False)
    _not_before_s: dict[str, float] = field(default_factory=dict)
    _scan_at_s: float = 0.0
    _turns: dict[str, int] = field(default_factory=dict)  # number of each tenant's last turn
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.usage = UsageLog(self.store)

    @property
    def board(self) -> Board:
        """The jobs of the store."""
        return Board(self.store)

    def run(self, *, until_idle: bool = False, linger_s: float | None = None) -> None:
        """Work until stopped, until nothing is left to do, or until there was nothing to do for `linger_s` seconds.

        What killed workers left on this machine's disk is removed first. A store or queue that cannot be
        reached is reported on stderr and tried again.
        """
        sweep_scratch()
        worked_s = time.monotonic()
        while not self.stopping:
            if until_idle:
                self._scan_at_s = 0.0  # a message that was lost should not be waited for
            try:
                worked = self.step()
            except StoreError as error:
                sys.stderr.write(f"error: {error.message}; trying again\n")
                worked = False
                time.sleep(SCAN_S)
            if worked:
                worked_s = time.monotonic()
                continue
            is_over = until_idle or (linger_s is not None and time.monotonic() - worked_s > linger_s)
            if is_over and not self._waiting():
                return
            time.sleep(POLL_S)

    def step(self) -> bool:
        """Do one job, of the tenants in turn; returns whether there was any.

        A message of the queue, or the time, only says that it is worth looking at the board. Raises the first
        StoreError that a job met on the way to it, after the others had their turn.
        """
        woken = [kind for kind in self.handlers if self.queue.take(kind) is not None]
        if not woken and time.monotonic() < self._scan_at_s:
            return False
        self._scan_at_s = time.monotonic() + SCAN_S
        errors = []
        for tenant, job_id in self._in_turn():
            try:
                if self.do(tenant, job_id):
                    self._scan_at_s = 0.0  # there may be more, whatever the queue says
                    return True
            except StoreError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return False

    def _in_turn(self) -> Iterator[tuple[str, str]]:
        """The jobs to do: each tenant's oldest before its second, those of whoever had no turn for longest first."""
        lines: dict[str, list[str]] = {}
        for kind in self.handlers:
            for tenant, job_id in self.board.active(kind):
                lines.setdefault(tenant, []).append(job_id)
        self._turns = {tenant: number for tenant, number in self._turns.items() if tenant in lines}
        tenants = sorted(lines, key=lambda tenant: self._turns.get(tenant, 0))
        for jobs in zip_longest(*(lines[tenant] for tenant in tenants)):
            yield from ((tenant, job_id) for tenant, job_id in zip(tenants, jobs, strict=True) if job_id is not None)

    def do(self, tenant: str, job_id: str) -> bool:
        """Do one job to its end, unless it has ended or another worker holds it; returns whether it was done."""
        if self.stopping or time.monotonic() < self._not_before_s.get(job_id, 0.0):
            return False
        try:
            job_path(tenant, job_id)
        except BallastError:  # a message that is none of ours
            return False
        try:
            with self.board.held(tenant, job_id) as job:
                if job is None or not job.active:
                    return False
                self._turns[tenant] = next(self._numbers)
                self._attempt(job)
                return True
        except IntegrityError as error:
            _tell(error)
            self.board.end_unreadable(tenant, job_id)
            return False

    def n_left_to_others(self, kind: JobKind) -> int:
        """How many jobs of a kind wait or run that this worker does not do."""
        if kind in self.handlers:
            return 0
        return sum(self.board.has_record(*found) for found in self.board.active(kind))

    def _waiting(self) -> bool:
        return any(self.board.has_record(*found) for kind in self.handlers for found in self.board.active(kind))

    def _attempt(self, job: Job) -> None:
        if self.board.cancel_asked(job):
            self._end(job.ended("cancelled", "cancelled before its end"))
            return
        if job.n_attempts >= MAX_ATTEMPTS:
            error = JobError(code="worker_died", message=f"the worker died {job.n_attempts} times over this job")
            self._end(job.ended("failed", error.message, error=error))
            return
        if job.state == "running":
            job = job.with_event("retried", "its worker died; the job begins again")
        job = job.with_event("started", "a worker began", state="running", n_attempts=job.n_attempts + 1)
        job = job.model_copy(update={"started_at": job.started_at or job.events[-1].at})
        self.board.write(job)
        with self._counted():
            self._handle(job)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self.metrics is None:
            yield
            return
        with self.metrics.running.track_inprogress():
            yield

    def _handle(self, job: Job) -> None:
        control = Control(self.board, job, lambda: self.stopping)
        try:
            with _rows(self.store, job) as path:
                result = self.handlers[job.kind](self.store, path, control)
        except CancelledError:
            self._end(control.job.ended("cancelled", "cancelled while it ran"))
        except StoppedError:
            self._hand_back(control.job, "the worker was stopped", n_attempts=job.n_attempts - 1)
        except BallastError as error:
            self._failed(control.job, error)
        except Exception as error:
            _tell(error)
            self._end(control.job.ended("failed", _INTERNAL, error=JobError(code="internal", message=_INTERNAL)))
        else:
            self._end(control.job.ended("done", "done", result=result))

    def _failed(self, job: Job, error: BallastError) -> None:
        if isinstance(error, StoreError):
            _tell(error)
            if job.n_attempts < MAX_ATTEMPTS:  # a full disk has room again, a bucket comes back
                self._not_before_s[job.job_id] = time.monotonic() + PAUSE_S
                self._hand_back(job, "the store failed; the job is tried again")
                return
            shown = JobError(code="internal", message=_INTERNAL)
        else:
            message = error.message.replace(self.store.base, "(store)")
            shown = JobError(code=error.code, message=message, details=error.details)
        self._end(job.ended("failed", shown.message, error=shown))

    def _hand_back(self, job: Job, why: str, **changes: Any) -> None:
        self.board.write(job.with_event("queued", why, state="queued", progress=None, **changes))
        with contextlib.suppress(StoreError):  # the next scan finds it anyway
            self.queue.put(job.kind, job.tenant, job.job_id)

    def _end(self, job: Job) -> None:
        self.board.end(job)
        self._log_usage(job)
        if self.metrics is not None:
            self.metrics.times.observe(job)
        if self.on_end is not None:
            self.on_end(job)
        self.n_done += 1
        seconds = (job.ended_at - job.started_at).total_seconds() if job.ended_at and job.started_at else 0.0
        say(f"{job.kind} {job.job_id}: {job.state} after {seconds:.1f} s")

    def _log_usage(self, job: Job) -> None:
        seconds = (job.ended_at - job.started_at).total_seconds() if job.ended_at and job.started_at else None
        try:
            self.usage.add(
                job.tenant,
                f"{job.kind} job {job.state}",
                job_id=job.job_id,
                mix_id=(job.result or {}).get("mix_id"),
                n_rows_in=job.request.get("task", {}).get("n_rows"),
                duration_ms=None if seconds is None else round(seconds * 1000, 1),
            )
        except StoreError as error:
            _tell(error)


@contextmanager
def _rows(store: Store, job: Job) -> Iterator[Path]:
    """The user's rows as a local file, for the length of the block; nothing is there for a job without any."""
    path = f"{job_path(job.tenant, job.job_id)}/{INPUT_FILE}"
    local = store.local_path(path)
    if local is None and job.kind in ("train", "tokens"):
        local = Path(INPUT_FILE)
    if local is not None:
        yield local
        return
    with Scratch("job") as folder:
        copy = folder / INPUT_FILE
        with store.open_file(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield copy


def _tell(error: BaseException) -> None:
    """The kind of a failure and where it was on stderr; its text may hold a user's words."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    shown = f": {error.message}" if isinstance(error, StoreError) else ""
    sys.stderr.write(f"error: {type(error).__name__} at {places}{shown}\n")
