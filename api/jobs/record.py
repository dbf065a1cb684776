"""What a job is: its states, events, progress and outcome, as stored in `job.json`."""

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

from pydantic import Field

from curator.recipe.base import Strict

JobKind = Literal["mix", "audit", "train", "tokens"]
KINDS: tuple[JobKind, ...] = get_args(JobKind)
# queued -> running -> done | failed | cancelled; a job whose worker died goes back to queued.
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[JobState, ...] = get_args(JobState)
ACTIVE: frozenset[JobState] = frozenset({"queued", "running"})
MAX_EVENTS = 200
MAX_TIME_MS = 10**14  # the year 5138: an id that was not made by us may hold any number
JOB_ID = re.compile(r"[0-9a-f]{32}")


class Progress(Strict):
    """How far a stage of the work is; `total` is null where it is not known. Both count in `unit`."""

    stage: str
    done: int
    total: int | None
    unit: str


class Event(Strict):
    """Something that happened to a job; `number` counts from 1 within it, `at` is UTC."""

    number: int
    at: datetime
    kind: str = Field(description="queued, started, stage, retried, cancel_asked, done, failed or cancelled")
    message: str


class JobError(Strict):
    """Why a job failed, in the shape of the service's error body."""

    code: str
    message: str
    details: list[Any] = Field(default_factory=list)


class Job(Strict):
    """One job of a tenant. Times are UTC. `request` is what its handler needs, `result` what it gave.

    `n_attempts` counts the times that a worker began; those that a worker handed back in good order do not count.
    """

    format_version: Literal[1] = 1
    job_id: str
    tenant: str
    kind: JobKind
    state: JobState
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    n_attempts: int = 0
    progress: Progress | None = None
    events: tuple[Event, ...] = ()
    request: dict[str, Any]
    result: dict[str, Any] | None = None
    error: JobError | None = None

    @property
    def active(self) -> bool:
        """Whether it still waits or runs."""
        return self.state in ACTIVE

    def with_event(self, kind: str, message: str, **changes: Any) -> Self:
        """The job with one more event, and other fields changed; the oldest events beyond 200 fall out."""
        number = self.events[-1].number + 1 if self.events else 1
        event = Event(number=number, at=now(), kind=kind, message=message)
        return self.model_copy(update={**changes, "events": (*self.events, event)[-MAX_EVENTS:]})

    def ended(self, state: JobState, message: str, **changes: Any) -> Self:
        """The job at its end; `message` is its last event."""
        return self.with_event(state, message, state=state, ended_at=now(), progress=None, **changes)


def new_job(tenant: str, kind: JobKind, request: dict[str, Any]) -> Job:
    """A queued job with an id that sorts by time and cannot be guessed (80 random bits)."""
    job_id = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
    job = Job(job_id=job_id, tenant=tenant, kind=kind, state="queued", created_at=now(), request=request)
    return job.with_event("queued", "waiting for a worker")


def unreadable_job(tenant: str, kind: JobKind, job_id: str) -> Job:
    """The end of a job whose record is damaged: when it was made follows from its id."""
    created_at = datetime.fromtimestamp(int(job_id[:12], 16) % MAX_TIME_MS / 1_000, UTC)
    job = Job(job_id=job_id, tenant=tenant, kind=kind, state="queued", created_at=created_at, request={})
    error = JobError(code="internal", message="the job's record is damaged: send the request again")
    return job.ended("failed", error.message, error=error)


def now() -> datetime:
    """This moment in UTC."""
    return datetime.now(UTC)
