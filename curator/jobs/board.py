"""Every job of a store, one folder each under `jobs/<tenant>/`; the files are the truth, the queue only a bell.

Whoever changes a job holds the lock of its folder, which the kernel (or a lease in a bucket) frees when the holder
dies: a running job whose lock is free has lost its worker. Marks under `jobs-active/` list the jobs that have not
ended, so that nobody reads old ones to find them.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from curator.errors import IntegrityError, MissingError, StoreError
from curator.jobs.record import JOB_ID, Job, JobKind, new_job
from curator.lease import LOCK_FILE
from curator.mixrows import tenant_path
from curator.store import Store

FOLDER, ACTIVE_FOLDER = "jobs", "jobs-active"
JOB_FILE, CANCEL_FILE, INPUT_FILE = "job.json", "cancel", "input.parquet"
ROWS_FILE, WORK_FOLDER = "rows.parquet", "work"  # of an audit: its answer, and what is only there while it runs


def job_path(tenant: str, job_id: str) -> str:
    """The folder of one job; raises MissingError for what cannot be a job id."""
    tenant_path(tenant)
    if not JOB_ID.fullmatch(job_id):
        raise MissingError(f"{job_id!r} is no job id: 32 hexadecimal digits")
    return f"{FOLDER}/{tenant}/{job_id}"


@dataclass(frozen=True)
class Board:
    """The jobs of one store; holds nothing itself, so that any process may have one."""

    store: Store

    def create(self, tenant: str, kind: JobKind, request: dict[str, Any], rows: Path | None = None) -> Job:
        """Keep a new job, its user data (a Parquet file) first and its record last."""
        job = new_job(tenant, kind, request)
        folder = job_path(tenant, job.job_id)
        self.store.write_bytes(_mark(job), b"")
        try:
            if rows is not None:
                with self.store.fill(f"{folder}/{INPUT_FILE}") as path:
                    shutil.copyfile(rows, path)
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
            raise IntegrityError(f"{path} is no job of this version") from error

    def ids(self, tenant: str, after: str = "") -> Iterator[str]:
        """Ids of a tenant's jobs after one of them, in order of time."""
        tenant_path(tenant)
        return (name for name in self.store.list(f"{FOLDER}/{tenant}") if name > after and JOB_ID.fullmatch(name))

    def tenants(self) -> list[str]:
        """Tenants that have jobs."""
        return self.store.list(FOLDER)

    def active(self, kind: JobKind | None = None, tenant: str | None = None) -> list[tuple[str, str]]:
        """(tenant, job id) of the jobs that have not ended, oldest first."""
        marks = [name.split("~") for name in self.store.list(ACTIVE_FOLDER, f"{tenant or '*'}~{kind or '*'}~*")]
        return [(owner, job_id) for owner, _, job_id in sorted(marks, key=lambda mark: mark[2])]

    def write(self, job: Job) -> None:
        """Replace a job's record; for the holder of its lock, or before anybody knows of it."""
        self.store.write_json(f"{job_path(job.tenant, job.job_id)}/{JOB_FILE}", job.model_dump(mode="json"))

    def end(self, job: Job) -> None:
        """Replace the record of a job that has ended, and drop the user's data, what was made of it, and the mark."""
        self.write(job)
        self._drop(job)

    @contextmanager
    def held(self, tenant: str, job_id: str) -> Iterator[Job | None]:
        """The job with its lock held; None when another process holds it or there is no such job."""
        folder = job_path(tenant, job_id)
        if not self.store.exists(f"{folder}/{JOB_FILE}"):
            yield None
            return
        lock = self.store.lock(folder)
        try:
            lock.__enter__()
        except StoreError:
            yield None
            return
        try:
            yield self._still_there(tenant, job_id)
        finally:
            lock.__exit__(None, None, None)

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

    def is_expired(self, job: Job, ttl_s: float | None) -> bool:
        """Whether a job ended more than `ttl_s` seconds ago; None: never."""
        return ttl_s is not None and job.ended_at is not None and time.time() - job.ended_at.timestamp() > ttl_s

    def sweep(self, ttl_s: float | None) -> int:
        """Remove expired jobs of all tenants, and marks of jobs that are none; returns how many jobs went."""
        n_removed = 0
        for tenant in self.tenants():
            for job_id in list(self.ids(tenant)):
                n_removed += self._sweep_one(tenant, job_id, ttl_s)
        return n_removed

    def _sweep_one(self, tenant: str, job_id: str, ttl_s: float | None) -> bool:
        try:
            job = self.read(tenant, job_id)
        except (MissingError, IntegrityError):
            return False
        if not self.is_expired(job, ttl_s):
            if not job.active:
                self._drop(job)  # a worker that died right after the record was written may have left it
            return False
        self.remove(tenant, job_id)
        return True

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
