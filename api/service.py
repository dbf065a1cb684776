"""What one running service holds: its settings, its store, and the slots for builds, statements and renderings.

`Expiry` removes mixes that are kept for a time only: they are gone for every reader once it is over, and removed soon
after.
"""

import logging
from asyncio import Lock as AsyncLock
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from starlette.requests import Request

from api.errors import ApiError
from api.idempotency import FOLDER as IDEMPOTENCY_FOLDER
from api.idempotency import Idempotency
from api.jobs.board import Board
from api.jobs.metrics import JobCollector
from api.jobs.models import TrainedModel, read_models
from api.jobs.queue import JobQueue, open_queue
from api.jobs.record import Job
from api.processes.builders import Builders, WorkLimits
from api.processes.webhooks import Webhooks
from api.processes.workers import OwnWorkers
from api.reports import ReportFolder
from api.settings import Settings
from api.telemetry import Metrics, log_event
from api.tenancy.auth import Keyring, is_loopback
from api.tenancy.quotas import Briefly, Figures, Quotas, StoredBytes, in_time
from api.tenancy.tenants import Tenants, load_tenants
from api.tenancy.turns import Turns
from curator.console import product_version
from curator.errors import MissingError
from curator.mix.build import is_expired, remove_expired, remove_left
from curator.mix.files import is_tenant, tenant_path
from curator.mix.sign import Signature, Signer, read_signature
from curator.query.local_copy import LocalCopy
from curator.query.sandbox_client import Sandbox, SqlLimits
from curator.store.scratch import sweep_scratch
from curator.store.store import Store
from curator.store.usage import UsageLog

KEY_KEPT_S = 7 * 86_400.0  # files of Idempotency-Keys, whatever their own time


@dataclass(frozen=True)
class Expiry:
    """`ttl_s` seconds after a mix was built (its manifest's modification time) it is over; None: never."""

    store: Store
    ttl_s: float | None

    def is_expired(self, tenant: str, mix_id: str) -> bool:
        """Whether a mix's time is over; False for what is not a mix."""
        return is_expired(self.store, tenant, mix_id, self.ttl_s)

    def sweep_mixes(self) -> int:
        """Remove every tenant's expired mixes and remains of killed builds; returns how many mixes went.

        What is not a tenant's folder is passed over.
        """
        n_removed = 0
        for tenant in filter(is_tenant, self.store.list("mixes")):
            remove_left(self.store, tenant)
            names = self.store.list(tenant_path(tenant))
            n_removed += sum(remove_expired(self.store, tenant, name, self.ttl_s) for name in names)
        return n_removed

    def sweep_keys(self) -> None:
        """Remove old files of Idempotency-Keys."""
        for tenant in self.store.list(IDEMPOTENCY_FOLDER):
            for name in self.store.list(f"{IDEMPOTENCY_FOLDER}/{tenant}"):
                path = f"{IDEMPOTENCY_FOLDER}/{tenant}/{name}"
                if self.store.age_s(path) > KEY_KEPT_S:
                    self.store.delete(path)


RETRY_AFTER_S = 5
READY_S = 1.0  # for how long an answer of /readyz is kept
R = TypeVar("R")


@dataclass
class Service:
    """Shared by all requests of a process; holds nothing that another process would need."""

    settings: Settings
    store: Store
    keyring: Keyring = field(init=False)
    quotas: Quotas = field(init=False)
    stored: StoredBytes = field(init=False)
    metrics: Metrics = field(init=False)
    stopping: bool = False
    idempotency: Idempotency = field(init=False)
    expiry: Expiry = field(init=False)
    tenants: Tenants = field(init=False)
    models: dict[str, TrainedModel] = field(init=False)
    local_copy: LocalCopy | None = field(init=False)
    signer: Signer | None = field(init=False)
    sandbox: Sandbox = field(init=False)
    builders: Builders = field(default_factory=Builders)
    board: Board = field(init=False)
    queue: JobQueue | None = field(init=False)
    figures: Figures = field(init=False)
    usage: UsageLog = field(init=False)
    reports: ReportFolder = field(init=False)
    webhooks: Webhooks = field(init=False)
    submitting: Lock = field(default_factory=Lock)
    submitting_tokens: Lock = field(default_factory=Lock)  # apart: held while a message is put into the queue
    workers: OwnWorkers | None = None  # where the service runs as a process of its own
    readiness: Briefly = field(default_factory=lambda: Briefly(READY_S))
    _renderings: "WeakValueDictionary[str, AsyncLock]" = field(default_factory=WeakValueDictionary)
    builds: Turns = field(init=False)
    statements: Turns = field(init=False)

    def __post_init__(self) -> None:
        may_open = self.settings.open or is_loopback(self.settings.host)
        self.keyring = Keyring(self.store, may_open, self.settings.address_keys_per_minute)
        self.tenants = load_tenants(self.settings)
        self.models = read_models(self.settings.openai_models) if self.settings.openai_models else {}
        self.quotas = Quotas(self.settings, self.tenants)
        self.stored = StoredBytes(self.store, lambda tenant: self.tenants.quota(tenant, "tenant_stored_bytes"))
        self.reports = ReportFolder(Path(self.settings.reports) if self.settings.reports else None)
        self.metrics = Metrics(self.settings, product_version())
        self.idempotency = Idempotency(self.store, self.settings.idempotency_ttl_s)
        self.expiry = Expiry(self.store, self.settings.mix_ttl_s)
        self.signer = Signer.load(Path(self.settings.sign_key)) if self.settings.sign_key else None
        remote = self.store.local_path("") is None
        self.local_copy = LocalCopy(self.store, self.settings.temp_dir) if remote else None
        self.sandbox = _sandbox(self.store, self.local_copy, self.settings)
        self.board = Board(self.store)
        self.metrics.registry.register(JobCollector(self.board))
        self.usage = UsageLog(self.store)
        self.webhooks = Webhooks(self.store, self.tenants, self.usage, self.settings.root_path)
        self.webhooks.check()
        self.queue = _queue(self.store, self.settings)
        self.builds = Turns(self.settings.max_builds, self.tenants.weight)
        self.statements = Turns(self.settings.max_sql, self.tenants.weight)
        figures = Turns(self.settings.max_sql, self.tenants.weight, keeps_one=True)  # may take long
        self.figures = Figures(self.quotas, figures)

    def run_work(self, function: Callable[..., R], *arguments: Any) -> R:
        """Read data or build in a process of its own; blocks, and raises what `Builders.run` raises."""
        return self.builders.run(self.work_limits, function, *arguments)

    @property
    def work_limits(self) -> WorkLimits:
        """Bounds of reading one data set, and of building one mix, whether its sender waits or not."""
        return WorkLimits(self.settings.build_timeout_s, self.settings.build_memory_bytes)

    @contextmanager
    def upload_place(self, tenant: str) -> Iterator[None]:
        """One of the tenant's places for uploads, taken before a byte of it is read.

        Separate from build places, so that a slow upload does not hold one. Raises ApiError 429 when the tenant has
        its share already, 503 when too many wait for a build.
        """
        with self.quotas.place(tenant, "builds", self.tenants.quota(tenant, "tenant_builds")):
            self._check_line()
            yield

    @asynccontextmanager
    async def build_place(self, tenant: str) -> AsyncIterator[None]:
        """One of the places for builds, in turn with other tenants; raises ApiError 503 when too many wait."""
        self._check_line()
        async with self.metrics.timed("builds", self.tenants.tier(tenant), self.builds.place(tenant)):
            yield

    @asynccontextmanager
    async def sql_place(self, tenant: str) -> AsyncIterator[Sandbox]:
        """One of the places for SQL statements; raises ApiError 429 or 503 when there is none in time."""
        with self.quotas.place(tenant, "statements", self.tenants.quota(tenant, "tenant_sql")):
            place = in_time(self.statements, tenant, self.settings.sql_timeout_s, "statements")
            async with self.metrics.timed("statements", self.tenants.tier(tenant), place):
                yield self.sandbox

    def rendering(self, name: str) -> AsyncLock:
        """The lock of a download that is rendered: requests for the same one wait instead of rendering it again."""
        return self._renderings.setdefault(name, AsyncLock())

    def kept_job(self, tenant: str, job_id: str) -> Job:
        """A job that is not over its time; raises MissingError without one."""
        job = self.board.read(tenant, job_id)
        if self.board.is_expired(job, self.settings.job_ttl_s):
            raise MissingError("the job is over its time")
        return job

    def signature(self, tenant: str, mix_id: str) -> Signature | None:
        """The signature of a mix, made now where there is a key and none was made before; None without both."""
        found = read_signature(self.store, tenant, mix_id)
        if found is None and self.signer is not None:
            found = self.signer.sign(self.store, tenant, mix_id)
        return found

    def close(self) -> None:
        """End what runs beside the requests."""
        if self.workers is not None:
            self.workers.close()
        self.sandbox.close()
        self.webhooks.stop()
        self.usage.close()
        self.builders.close()
        if self.local_copy is not None:
            self.local_copy.close()
        if self.queue is not None:
            self.queue.close()

    def tidy(self) -> None:
        """Remove what is over its time or left behind: mixes, keys, jobs and uploads.

        Each on its own: what fails is logged, and the others are still swept.
        """
        parts: dict[str, Callable[[], object]] = {
            "mixes": self.expiry.sweep_mixes,
            "idempotency keys": self.expiry.sweep_keys,
            "jobs": lambda: self.board.sweep(self.settings.job_ttl_s),
            "usage": lambda: self.usage.sweep(self.settings.usage_ttl_s),
            "temporary folders": lambda: sweep_scratch(self.settings.temp_dir),
        }
        for name, sweep in parts.items():
            try:
                sweep()
            except Exception as error:
                log_event(logging.WARNING, "sweep failed", error, part=name)

    def _check_line(self) -> None:
        if self.builds.is_full and self.builds.n_waiting >= self.settings.max_waiting_builds:
            raise ApiError(
                503,
                "busy",
                f"{self.settings.max_builds} mixes are being built and {self.builds.n_waiting} wait: try again later",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )


def _queue(store: Store, settings: Settings) -> JobQueue | None:
    """The queue of jobs; None for a store in a bucket whose settings name none: it takes no jobs."""
    if settings.job_queue is None and store.local_path("") is None:
        return None
    return open_queue(store, settings.job_queue)


def _sandbox(store: Store, copy: LocalCopy | None, settings: Settings) -> Sandbox:
    limits = SqlLimits(settings.sql_timeout_s, settings.sql_memory_bytes, settings.sql_max_rows, settings.sql_max_bytes)
    if copy is None:
        return Sandbox(lambda: str(store.local_path("")), limits)
    return Sandbox(lambda: str(copy.path()), limits)


def service_of(request: Request) -> Service:
    """The service that answers a request."""
    service: Service = request.app.state.service
    return service
