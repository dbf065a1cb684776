"""Webhooks: the end of a job is posted to its tenant's URL, signed as Standard Webhooks 1.0 describes.

Of a job of `api.jobs` the report is made when its end is seen; of other work, such as a fine-tuning job, it is given
whole once that has ended (`tell`). A pending file under `webhooks/` is written before the job's record, so that no end
is missed, and goes when the report was taken or given up; what was tried then lies in the job's folder. Delivery is at
least once: a process that dies after the answer repeats it, under the same `webhook-id`. URLs come from the operator's
file of tenants, never from a request.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import orjson
from pydantic import ValidationError

from api.jobs.board import ACTIVE_FOLDER, Board, job_path
from api.jobs.record import Job
from api.telemetry import log_event
from api.tenancy.tenants import Tenants, Webhook
from curator.errors import BadInputError, BallastError, LockedError, MissingError, StoreError
from curator.mix.files import is_tenant
from curator.recipe.base import Strict
from curator.store.store import Store
from curator.store.usage import UsageLog

FOLDER = "webhooks"
RECORD_FILE = "webhook.json"  # in the folder of a job: what was tried
POLL_S = 2.0  # between two looks at what is pending
TIMEOUT_S = 15.0
GRACE_S = 60.0  # between the pending file of a job and its record
STORE_PAUSE_S = 300.0  # before a report whose delivery could not be recorded is sent again
N_TENANTS = 8  # served side by side
# Between attempts, as Standard Webhooks advises: about 28 hours in all.
DELAYS_S = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 36_000.0)
SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
_NAME = re.compile(r"[0-9a-z-]{1,64}")  # of a job
GONE = 410  # the receiver wants no more of this


class Attempt(Strict):
    """One try: when (seconds since 1970), and the answer's status, or null with the kind of failure."""

    at_s: float
    status: int | None = None
    error: str | None = None


class EndedWork(Strict):
    """Work beside the jobs of `api.jobs` that has ended: its folder in the store, and what is to be posted."""

    folder: str
    report: dict[str, Any]


class Delivery(Strict):
    """A report as kept; `state` is pending, delivered or given_up."""

    format_version: Literal[1] = 1
    webhook_id: str
    tenant: str
    job_id: str
    state: Literal["pending", "delivered", "given_up"] = "pending"
    not_before_s: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    ended: EndedWork | None = None

    @property
    def folder(self) -> str:
        """Of the work: its lock is held during a try, and the outcome is kept there."""
        return job_path(self.tenant, self.job_id) if self.ended is None else self.ended.folder


def read_secrets(path: Path) -> list[bytes]:
    """The secrets of a file, one a line, the newest first: each signs, so that a receiver may change over.

    Raises BadInputError for a file that cannot be read or a line that is no `whsec_` secret of 24 to 64 bytes.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"the webhook's secret_file {path} cannot be read as text") from error
    try:
        found = [base64.b64decode(line.removeprefix(SECRET_PREFIX), validate=True) for line in lines]
    except binascii.Error:
        found = []
    if not found or not all(MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES for secret in found):
        raise BadInputError(
            f"the webhook's secret_file {path} must hold one secret a line: {SECRET_PREFIX} and the base64 of "
            f"{MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} random bytes"
        )
    return found


def signature(secrets: list[bytes], webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over id, timestamp and body, per secret."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    digests = (hmac.new(secret, content, hashlib.sha256).digest() for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


@dataclass
class Webhooks:
    """The reports of one store; any process of the service may deliver them."""

    store: Store
    tenants: Tenants
    usage: UsageLog
    root_path: str = ""
    delays_s: tuple[float, ...] = DELAYS_S
    poll_s: float = POLL_S
    grace_s: float = GRACE_S
    _stopping: threading.Event = field(default_factory=threading.Event)
    _paused_s: dict[str, float] = field(default_factory=dict)  # by job id
    _thread: threading.Thread | None = None

    def check(self) -> None:
        """Raises BadInputError for a tenant's secret that cannot be, so that the start fails and no report later."""
        for tenant in self.tenants.entries:
            hook = self.tenants.webhook(tenant)
            if hook is not None:
                read_secrets(Path(hook.secret_file))

    def expect(self, tenant: str, job_id: str) -> None:
        """Record, before the job is, that its end is to be posted, where its tenant has a URL."""
        if self.tenants.webhook(tenant) is not None:
            self._write(Delivery(webhook_id=f"msg_{job_id}", tenant=tenant, job_id=job_id))

    def tell(self, tenant: str, name: str, ended: EndedWork) -> None:
        """Post the report of work that has ended, where its tenant has a URL; `name` tells it from all other work."""
        if self.tenants.webhook(tenant) is not None:
            self._write(Delivery(webhook_id=f"msg_{name}", tenant=tenant, job_id=name, ended=ended))

    def forget(self, tenant: str, job_id: str) -> None:
        """Drop what `expect` kept, of a job that was never made."""
        self.store.delete(_path(tenant, job_id))

    def start(self) -> None:
        """Deliver in a thread until `stop`; nothing is started where no tenant wants to hear."""
        if self._thread is None and any(self.tenants.webhook(tenant) for tenant in self.tenants.entries):
            self._thread = threading.Thread(target=self._run, name="ballast-webhooks", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, after the attempts that are under way."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(TIMEOUT_S)

    def deliver_due(self) -> None:
        """Try every report whose job has ended and whose time has come; what fails is tried again later.

        Tenants are served side by side, so that one's slow receiver delays no other's. Raises StoreError when the
        store cannot be listed.
        """
        names = [name.removesuffix(".json") for name in self.store.list(FOLDER, "*~*.json")]
        pending = [(tenant, job_id) for tenant, _, job_id in (name.partition("~") for name in names)]
        if not pending:
            return
        active = {name.rpartition("~")[2] for name in self.store.list(ACTIVE_FOLDER)}
        due: dict[str, list[str]] = {}
        for tenant, job_id in pending:
            if job_id not in active and is_tenant(tenant) and _NAME.fullmatch(job_id):
                due.setdefault(tenant, []).append(job_id)
        with ThreadPoolExecutor(N_TENANTS) as pool:
            list(pool.map(self._try_all, due, due.values()))

    def _run(self) -> None:
        while not self._stopping.wait(self.poll_s):
            try:
                self.deliver_due()
            except Exception as error:  # whatever it is, the next look is not to be lost with this one
                log_event(logging.WARNING, "webhooks failed", error)

    def _try_all(self, tenant: str, job_ids: list[str]) -> None:
        for job_id in job_ids:
            if self._stopping.is_set():
                return
            if time.monotonic() < self._paused_s.get(job_id, 0.0):
                continue
            try:
                self._paused_s.pop(job_id, None)
                self._try(tenant, job_id)
            except BallastError as error:
                log_event(logging.WARNING, "webhook failed", error, job_id=job_id)

    def _try(self, tenant: str, job_id: str) -> None:
        delivery, hook = self._read(tenant, job_id), self.tenants.webhook(tenant)
        if delivery is None or delivery.not_before_s > time.time():
            return
        if hook is None or not (delivery.ended or Board(self.store).has_record(tenant, job_id)):
            # The URL is gone, or the job was removed before its end was posted; one that is being made has time.
            if hook is None or self.store.age_s(_path(tenant, job_id)) > self.grace_s:
                self.forget(tenant, job_id)
            return
        with self._held(delivery) as report:  # None: another process is at it
            delivery = self._read(tenant, job_id)  # again: another process may have been faster
            if report is None or delivery is None or delivery.not_before_s > time.time():
                return
            delivery = self._attempt(hook, delivery, report)
            try:
                self._keep(delivery)
                self.usage.add(tenant, "webhook", job_id=job_id, status=delivery.attempts[-1].status)
            except StoreError:  # a full disk: the receiver has heard it, and is not to hear it at every look
                self._paused_s[job_id] = time.monotonic() + STORE_PAUSE_S
                raise

    @contextmanager
    def _held(self, delivery: Delivery) -> Iterator[dict[str, Any] | None]:
        """What is to be posted, with the lock of its work held; None when another process holds it or it goes on."""
        if delivery.ended is None:
            with Board(self.store).held(delivery.tenant, delivery.job_id) as job:
                yield None if job is None or job.active else self._report(job)
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self.store.lock(delivery.folder))
            except LockedError:
                yield None
                return
            yield delivery.ended.report

    def _attempt(self, hook: Webhook, delivery: Delivery, report: dict[str, Any]) -> Delivery:
        body = orjson.dumps(report)
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "webhook-id": delivery.webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(read_secrets(Path(hook.secret_file)), delivery.webhook_id, timestamp, body),
        }
        attempt = Attempt(at_s=time.time())
        try:
            # Redirects are not followed: the operator named this URL and no other.
            with (
                httpx.Client(timeout=TIMEOUT_S) as http,
                http.stream("POST", hook.url, content=body, headers=headers) as answer,
            ):
                attempt = attempt.model_copy(update={"status": answer.status_code})
        except httpx.HTTPError as error:
            attempt = attempt.model_copy(update={"error": type(error).__name__})
        attempts = (*delivery.attempts, attempt)
        if attempt.status is not None and 200 <= attempt.status < 300:
            return delivery.model_copy(update={"attempts": attempts, "state": "delivered"})
        if attempt.status == GONE or len(attempts) > len(self.delays_s):
            return delivery.model_copy(update={"attempts": attempts, "state": "given_up"})
        not_before_s = time.time() + self.delays_s[len(attempts) - 1]
        return delivery.model_copy(update={"attempts": attempts, "not_before_s": not_before_s})

    def _report(self, job: Job) -> dict[str, Any]:
        """The body: ids, states, times and links, and no text of the user's."""
        assert job.ended_at is not None
        mix_id = (job.result or {}).get("mix_id")
        return {
            "type": f"job.{job.state}",
            "timestamp": job.ended_at.isoformat(),
            "data": {
                "job_id": job.job_id,
                "kind": job.kind,
                "state": job.state,
                "created_at": job.created_at.isoformat(),
                "ended_at": job.ended_at.isoformat(),
                "mix_id": mix_id,
                "error_code": None if job.error is None else job.error.code,
                "link": f"{self.root_path}/v1/jobs/{job.job_id}",
            },
        }

    def _keep(self, delivery: Delivery) -> None:
        """The record with its newest attempt; of one that is over, beside its job, which it goes with."""
        if delivery.state == "pending":
            self._write(delivery)
            return
        self.store.write_json(f"{delivery.folder}/{RECORD_FILE}", delivery.model_dump(mode="json"))
        self.forget(delivery.tenant, delivery.job_id)

    def _read(self, tenant: str, job_id: str) -> Delivery | None:
        try:
            return Delivery.model_validate(self.store.read_json(_path(tenant, job_id)))
        except MissingError:
            return None
        except (BallastError, ValidationError):  # damaged: tell it as if for the first time
            return Delivery(webhook_id=f"msg_{job_id}", tenant=tenant, job_id=job_id)

    def _write(self, delivery: Delivery) -> None:
        self.store.write_json(_path(delivery.tenant, delivery.job_id), delivery.model_dump(mode="json"))


def _path(tenant: str, job_id: str) -> str:
    return f"{FOLDER}/{tenant}~{job_id}.json"
