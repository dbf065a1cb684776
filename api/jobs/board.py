"""Every job of a store, one folder each under `jobs/<tenant>/`: the source of truth of what is to be done.

Whoever changes a job holds the lock of its folder, which the kernel (or a lease in a bucket) frees when the holder
dies: a running job whose lock is free has lost its worker. Marks under `jobs-active/` list the jobs that have not
ended, so that nobody reads old ones to find them.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from api.jobs.record import (
    JOB_ID,
    KINDS,
    Job,
    JobKind,
    new_job,
    unreadable_job,
)
from curator.errors import (
    IntegrityError,
    LockedError,
    MissingError,
    StoreError,
)
from curator.mix.files import is_tenant, tenant_path
from curator.store.lock import LOCK_FILE
from curator.store.store import Store

FOLDER, ACTIVE_FOLDER = "jobs", "jobs-active"
JOB_FILE, CANCEL_FILE, INPUT_FILE = "job.json", "cancel", "input.parquet"
TOKENS_FILE = "tokens.json"  # of a `tokens` job: its answer
ROWS_FILE, WORK_FOLDER = "rows.parquet", "work"  # of an audit: its answer, and what is only there while it runs
GRACE_S = 3600.0  # what has no record and was not touched for so long has no process any more that makes or removes it


def job_path(tenant: str, job_id: str) -> str:
    """The folder of one job; raises MissingError for what cannot be a job id."""
    tenant_path(tenant)
    if not JOB_ID.fullmatch(job_id):
        raise MissingError(f"invalid job id {job_id!r}: 32 hexadecimal digits")
    return f"{FOLDER}/{tenant}/{job_id}"


def _take(rows: Path, target: Path) -> None:
    """Another name for a file that is replaced but never changed; a copy where names cannot be shared (two disks)."""
    try:
        target.hardlink_to(rows)
    except OSError:
        shutil.copyfile(rows, target)


@dataclass(frozen=True)
class Board:
    """The jobs of one store; holds nothing itself, so that any process may have one."""

    store: Store

    def create(
        self,
        tenant: str,
        kind: JobKind,
        request: dict[str, Any],
        rows: Path | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> Job:
        """Keep a new job, its user data (a Parquet file) first and its record last; `announce` gets its id before."""
        job = new_job(tenant, kind, request)
        if announce is not None:
            announce(job.job_id)
        folder = job_path(tenant, job.job_id)
        self.store.write_bytes(_mark(job), b"")
        try:
            if rows is not None:
                with self.store.fill(f"{folder}/{INPUT_FILE}") as path:
                    _take(rows, path)
            self.write(job)
        except BaseException:
            self.store.delete(folder)
            self.store.delete(_mark(job))
            raise
        return job

    def read(self, tenant: str, job_id: str) -> Job:
        """A job as it stands; raises MissingError without one, IntegrityError for a damaged record."""
        path = f"{job_path(tenant, job_id)}/{JOB_FILE}"
        try:
            return Job.model_validate(self.store.read_json(path))
        except MissingError as error:
            raise MissingError(f"there is no job {job_id} of tenant {tenant}") from error
        except ValidationError as error:
            raise IntegrityError(f"{path} is not a job of this version") from error

    def ids(self, tenant: str, after: str = "") -> Iterator[str]:
        """Ids of a tenant's jobs after one of them, in order of time."""
        tenant_path(tenant)
        return (name for name in self.store.list(f"{FOLDER}/{tenant}") if name > after and JOB_ID.fullmatch(name))

    def tenants(self) -> list[str]:
        """Tenants that have jobs; a folder of another name is passed over."""
        return [name for name in self.store.list(FOLDER) if is_tenant(name)]

    def active(self, kind: JobKind | None = None, tenant: str | None = None) -> list[tuple[str, str]]:
        """(tenant, job id) of the jobs that have not ended, oldest first."""
        found = sorted(self._marks(tenant, kind), key=lambda mark: mark[2])
        return [(owner, job_id) for owner, _, job_id in found]

    def has_record(self, tenant: str, job_id: str) -> bool:
        """Whether a job's record is there: a mark alone is a job that is being made, or that was never made whole."""
        return self.store.exists(f"{job_path(tenant, job_id)}/{JOB_FILE}")

    def write(self, job: Job) -> None:
        """Replace a job's record; for the holder of its lock, or before anybody knows of it."""
        self.store.write_json(f"{job_path(job.tenant, job.job_id)}/{JOB_FILE}", job.model_dump(mode="json"))

    def end(self, job: Job) -> None:
        """Replace the record of a job that has ended, and drop the user's data, what was made of it, and the mark."""
        self.write(job)
        self._drop(job)

    @contextmanager
    def held(self, tenant: str, job_id: str) -> Iterator[Job | None]:
        """The job with its lock held; None when another process holds it or there is no such job.

        Raises IntegrityError for a damaged record, StoreError when the lock cannot be taken for another reason.
        """
        with self._locked(tenant, job_id) as is_ours:
            yield self._still_there(tenant, job_id) if is_ours else None

    def end_unreadable(self, tenant: str, job_id: str) -> None:
        """End a job whose record is damaged as failed, unless another process holds it or the record can be read."""
        with self._locked(tenant, job_id) as is_ours:
            if not is_ours:
                return
            try:
                self._still_there(tenant, job_id)
            except IntegrityError:
                kinds = [kind for _, kind, name in self._marks(tenant) if name == job_id]
                self.end(unreadable_job(tenant, kinds[0] if kinds else KINDS[0], job_id))

    @contextmanager
    def _locked(self, tenant: str, job_id: str) -> Iterator[bool]:
        """Whether the lock of a job that has a record is ours, for the length of the block."""
        with ExitStack() as stack:
            is_ours = self.has_record(tenant, job_id)
            try:
                if is_ours:
                    stack.enter_context(self.store.lock(job_path(tenant, job_id)))
            except LockedError:
                is_ours = False
            except StoreError:
                if self.has_record(tenant, job_id):
                    raise
                is_ours = False  # it was removed in this moment
            yield is_ours

    def ask_to_cancel(self, tenant: str, job_id: str) -> Job:
        """Cancel a job that nobody works on; otherwise leave word for its worker. Returns the job as it stands.

        Raises MissingError without such a job. A job that has ended stays as it is.
        """
        folder = job_path(tenant, job_id)
        job = self.read(tenant, job_id)
        if not job.active:
            return job
        self.store.write_bytes(f"{folder}/{CANCEL_FILE}", b"")
        with self.held(tenant, job_id) as held:
            if held is not None and held.active:
                job = held.ended("cancelled", "cancelled before its end")
                self.end(job)
                return job
        return self.read(tenant, job_id)

    def cancel_asked(self, job: Job) -> bool:
        """Whether somebody wants the job to stop."""
        return self.store.exists(f"{job_path(job.tenant, job.job_id)}/{CANCEL_FILE}")

    def remove(self, tenant: str, job_id: str) -> None:
        """Remove a job and all it kept; its record goes first."""
        folder = job_path(tenant, job_id)
        self.store.delete(f"{folder}/{JOB_FILE}")
        self.store.delete(folder)

    def withdraw(self, job: Job) -> None:
        """Remove a job whose id was not yet returned. Nothing is written: the disk may be full."""
        self.remove(job.tenant, job.job_id)
        self.store.delete(_mark(job))

    def is_expired(self, job: Job, ttl_s: float | None) -> bool:
        """Whether a job ended more than `ttl_s` seconds ago; None: never."""
        return ttl_s is not None and job.ended_at is not None and time.time() - job.ended_at.timestamp() > ttl_s

    def sweep(self, ttl_s: float | None) -> int:
        """Remove expired jobs of all tenants, and what was left of jobs that were made or removed in part.

        Those are folders without a record that can be read, and marks without one, untouched for GRACE_S.
        Returns how many jobs went.
        """
        n_removed = 0
        for tenant in self.tenants():
            for job_id in list(self.ids(tenant)):
                n_removed += self._sweep_one(tenant, job_id, ttl_s)
        for tenant, kind, job_id in self._marks():
            mark = f"{ACTIVE_FOLDER}/{tenant}~{kind}~{job_id}"
            if not self.has_record(tenant, job_id) and self.store.age_s(mark) > GRACE_S:
                self.store.delete(mark)
        return n_removed

    def _sweep_one(self, tenant: str, job_id: str, ttl_s: float | None) -> bool:
        try:
            job = self.read(tenant, job_id)
        except (MissingError, IntegrityError):
            return self._sweep_remains(tenant, job_id)
        if not self.is_expired(job, ttl_s):
            if not job.active:
                self._drop(job)  # a worker that died right after the record was written may have left it
            return False
        self.remove(tenant, job_id)
        return True

    def _sweep_remains(self, tenant: str, job_id: str) -> bool:
        """Remove a job without a readable record that nobody touched for a while; its mark goes by its own age."""
        if self.store.age_s(job_path(tenant, job_id)) <= GRACE_S:
            return False
        self.remove(tenant, job_id)
        return True

    def _marks(self, tenant: str | None = None, kind: JobKind | None = None) -> list[tuple[str, JobKind, str]]:
        """(tenant, kind, job id) of each mark; files of other names are none."""
        names = self.store.list(ACTIVE_FOLDER, f"{tenant or '*'}~{kind or '*'}~*")
        known = {str(kind): kind for kind in KINDS}
        parts = [name.split("~") for name in names if name.count("~") == 2]
        return [
            (owner, known[what], job_id)
            for owner, what, job_id in parts
            if is_tenant(owner) and what in known and JOB_ID.fullmatch(job_id)
        ]

    def _drop(self, job: Job) -> None:
        folder = job_path(job.tenant, job.job_id)
        for name in (INPUT_FILE, WORK_FOLDER):
            if self.store.exists(f"{folder}/{name}"):
                self.store.delete(f"{folder}/{name}")
        self.store.delete(_mark(job))

    def _still_there(self, tenant: str, job_id: str) -> Job | None:
        """The job, read again under its lock: it may have been removed meanwhile, and the lock made its folder anew."""
        try:
            return self.read(tenant, job_id)
        except MissingError:
            folder = job_path(tenant, job_id)
            if set(self.store.list(folder)) <= {LOCK_FILE}:
                self.store.delete(folder)
            return None


def _mark(job: Job) -> str:
    return f"{ACTIVE_FOLDER}/{job.tenant}~{job.kind}~{job.job_id}"
