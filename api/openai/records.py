"""Fine-tuning jobs as kept: `openai/<tenant>/jobs/<id>/job.json`.

An id follows from what was asked (`records.job_id`), so that a create whose answer was lost finds its job when the
client repeats it. The work itself is a job of `api.jobs`, named by `work_id`. Whoever changes a record holds the lock
of its folder.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field

from api.openai.files import FOLDER, content_id, read_record
from curator.errors import IntegrityError, LockedError, MissingError
from curator.mix.files import is_tenant, tenant_path
from curator.recipe.base import Strict
from curator.store.store import Store

JOB_ID = re.compile(r"ftjob-[0-9a-f]{24}")
RECORD_FILE, CANCEL_FILE, VALIDATION_FILE, RUN_FOLDER = "job.json", "cancel", "validation.jsonl", "run"
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]
MAX_EVENTS = 10_000
COMPLETED = "The job has successfully completed"


class JobEvent(Strict):
    """Something that happened to a job; `number` counts from 1 within it, `at_s` is in seconds since 1970."""

    number: int
    at_s: float
    level: Level = "info"
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = Field(default_factory=dict)


class Upstream(Strict):
    """How far a job is at the upstream. `step` is what is to be done next: upload the mix, start the job, follow it.

    `tried_s` is when the step's request was last sent, before its answer was kept: null when none is open.
    """

    step: Literal["upload", "start", "follow"] = "upload"
    tried_s: float | None = None
    not_before_s: float = 0.0
    n_failed: int = 0
    file_id: str | None = None
    validation_id: str | None = None
    job_id: str | None = None
    cancel_sent: bool = False
    last_event: str | None = None
    checkpoints: list[dict[str, Any]] = Field(default_factory=list)


class Training(Strict):
    """The training of a job. `hyperparameters` have no `auto`. `work_id` is the id of the `api.jobs` job that trains;
    `is_made` is true once that job was made. The other fields say which attempts, steps and checkpoints the events of
    the fine-tuning job have."""

    hyperparameters: dict[str, Any]
    work_id: str = ""
    is_made: bool = False
    n_attempts: int = 0
    last_step: int = 0
    checkpoints: list[dict[str, Any]] = Field(default_factory=list)


class JobRecord(Strict):
    """One fine-tuning job. Times are seconds since 1970. `asked` is the request, `facts` what is added to its metadata,
    `attempt` counts creates that were repeated on purpose after a failure or cancel. `is_to_be_posted`: its end is
    still to be handed to the tenant's webhook."""

    format_version: Literal[1] = 1
    id: str
    tenant: str
    attempt: int
    mode: Literal["mix", "forward", "train"]
    created_s: float
    asked: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    work_id: str = ""
    audit_id: str = ""
    status: Status = "queued"
    is_started: bool = False
    finished_s: float | None = None
    error: dict[str, Any] | None = None
    result_files: list[str] = Field(default_factory=list)
    facts: dict[str, str] = Field(default_factory=dict)
    model: str | None = None
    model_deleted: bool = False
    trained_tokens: int | None = None
    events: list[JobEvent] = Field(default_factory=list)
    upstream: Upstream | None = None
    training: Training | None = None
    is_to_be_posted: bool = False

    @property
    def is_active(self) -> bool:
        """Whether the job has not ended."""
        return self.finished_s is None

    def event(self, message: str, level: Level = "info", **more: Any) -> Self:
        """The job with one more event; the oldest beyond 10,000 fall out."""
        number = self.events[-1].number + 1 if self.events else 1
        event = JobEvent(number=number, at_s=more.pop("at_s", time.time()), level=level, message=message, **more)
        return self.model_copy(update={"events": [*self.events, event][-MAX_EVENTS:]})

    def ended(self, status: Status, message: str, error: dict[str, Any] | None = None) -> Self:
        """The job at its end."""
        level: Level = "error" if status == "failed" else "info"
        changes = {"status": status, "finished_s": time.time(), "error": error}
        is_known = bool(self.events) and self.events[-1].message == message  # from the upstream
        return (self if is_known else self.event(message, level)).model_copy(update=changes)

    def view(self) -> dict[str, Any]:
        """The job as clients see it; what their types do not allow to be null never is."""
        given = self.asked["hyperparameters"] if self.training is None else self.training.hyperparameters
        names = ("n_epochs", "batch_size", "learning_rate_multiplier")
        hyperparameters = {name: given.get(name, "auto") for name in names}
        return {
            "id": self.id,
            "object": "fine_tuning.job",
            "created_at": int(self.created_s),
            "finished_at": None if self.finished_s is None else int(self.finished_s),
            "error": self.error,
            "fine_tuned_model": None if self.model_deleted else self.model,
            "hyperparameters": hyperparameters,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "model": self.asked["model"],
            "organization_id": f"org-{self.tenant}",
            "result_files": self.result_files,
            "seed": self.seed,
            "status": self.status,
            "trained_tokens": self.trained_tokens,
            "training_file": self.asked["training_file"],
            "validation_file": self.asked["validation_file"],
            "estimated_finish": None,
            "integrations": [],
            "metadata": {**self.asked["metadata"], **self.facts},
        }

    def report(self) -> dict[str, Any]:
        """What is posted to a webhook at its end, as OpenAI's own webhooks have it."""
        return {
            "id": f"evt_{self.id.removeprefix('ftjob-')}",
            "object": "event",
            "created_at": int(self.finished_s or 0.0),
            "type": f"fine_tuning.job.{self.status}",
            "data": {"id": self.id},
        }

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """Its checkpoints as clients see them, newest first; none once their folders are removed."""
        if self.training is not None:
            is_gone = self.model_deleted or self.status in ("failed", "cancelled")
            return [] if is_gone else self.training.checkpoints[::-1]
        return [] if self.upstream is None else self.upstream.checkpoints

    def event_views(self) -> list[dict[str, Any]]:
        """Its events as clients see them, oldest first."""
        return [
            {
                "id": f"ftevent-{self.id.removeprefix('ftjob-')}-{event.number:06d}",
                "object": "fine_tuning.job.event",
                "created_at": int(event.at_s),
                "level": event.level,
                "message": event.message,
                "type": event.type,
                "data": event.data,
            }
            for event in self.events
        ]


def job_id(tenant: str, request: dict[str, Any], recipe: dict[str, Any], attempt: int) -> str:
    """The id that follows from what was asked."""
    return content_id("ftjob", [tenant, request, recipe, attempt])


@dataclass(frozen=True)
class Records:
    """The fine-tuning jobs of one store."""

    store: Store

    def path(self, tenant: str, ft_id: str) -> str:
        """A job's folder; raises MissingError for what can be no id."""
        tenant_path(tenant)
        if not JOB_ID.fullmatch(ft_id):
            raise MissingError(f"Could not find fine tune: {ft_id}")
        return f"{FOLDER}/{tenant}/jobs/{ft_id}"

    def read(self, tenant: str, ft_id: str) -> JobRecord:
        """A job as kept; raises MissingError without one, IntegrityError for a damaged record."""
        path = f"{self.path(tenant, ft_id)}/{RECORD_FILE}"
        return read_record(self.store, path, JobRecord, f"Could not find fine tune: {ft_id}")

    def write(self, record: JobRecord) -> None:
        """Keep a job; for the holder of its lock."""
        path = f"{self.path(record.tenant, record.id)}/{RECORD_FILE}"
        self.store.write_json(path, record.model_dump(mode="json"))

    def ids(self, tenant: str) -> list[str]:
        """Ids of a tenant's jobs, in no order that means anything."""
        return [name for name in self.store.list(f"{FOLDER}/{tenant}/jobs") if JOB_ID.fullmatch(name)]

    def all(self, tenant: str) -> list[JobRecord]:
        """A tenant's jobs, newest first; what was removed meanwhile or is damaged is left out."""
        found = []
        for name in self.ids(tenant):
            try:
                found.append(self.read(tenant, name))
            except (MissingError, IntegrityError):
                continue
        return sorted(found, key=lambda record: (record.created_s, record.id), reverse=True)

    def ask_to_cancel(self, tenant: str, ft_id: str) -> None:
        """Leave word that a job is to end; needs no lock."""
        self.store.write_bytes(f"{self.path(tenant, ft_id)}/{CANCEL_FILE}", b"")

    def cancel_asked(self, tenant: str, ft_id: str) -> bool:
        """Whether somebody wants a job to end."""
        return self.store.exists(f"{self.path(tenant, ft_id)}/{CANCEL_FILE}")

    def validation_path(self, tenant: str, ft_id: str) -> str:
        """Where a forwarded job's own copy of its validation file lies."""
        return f"{self.path(tenant, ft_id)}/{VALIDATION_FILE}"

    def run_path(self, tenant: str, ft_id: str) -> str:
        """The folder of a job's training."""
        return f"{self.path(tenant, ft_id)}/{RUN_FOLDER}"

    def models_path(self, tenant: str) -> str:
        """The folder of the models that a tenant's jobs made: each under its id."""
        tenant_path(tenant)
        return f"{FOLDER}/{tenant}/models"

    def tenants(self) -> list[str]:
        """Tenants that have files or jobs of this form."""
        return [name for name in self.store.list(FOLDER) if is_tenant(name)]

    @contextmanager
    def held(self, tenant: str, ft_id: str, wait_s: float = 0.0) -> Iterator[bool]:
        """Whether the lock of a job is ours, for the length of the block; waits `wait_s` seconds for another holder."""
        try:
            lock = self.store.lock(self.path(tenant, ft_id), wait_s)
            lock.__enter__()
        except LockedError:
            yield False
            return
        try:
            yield True
        finally:
            lock.__exit__(None, None, None)

    def sweep(self, ttl_s: float, grace_s: float) -> None:
        """Remove jobs that ended more than `ttl_s` seconds ago with their result files, and folders without a record
        that nobody touched for `grace_s` seconds. A job whose model lies here stays as long as the model."""
        for tenant in self.tenants():
            for name in self.store.list(f"{FOLDER}/{tenant}/jobs"):
                folder, results = f"{FOLDER}/{tenant}/jobs/{name}", list[str]()
                try:
                    record = self.read(tenant, name)
                    is_over = record.finished_s is not None and time.time() - record.finished_s > ttl_s
                    is_over = is_over and not (record.training and record.model and not record.model_deleted)
                    results = record.result_files
                except MissingError:
                    is_over = self.store.age_s(folder) > grace_s
                except IntegrityError:
                    is_over = self.store.age_s(folder) > ttl_s
                if is_over:
                    for file_id in results:
                        self.store.delete(f"{FOLDER}/{tenant}/files/{file_id}")
                    self.store.delete(f"{folder}/{RECORD_FILE}")
                    self.store.delete(folder)
