"""Idempotency-Key: the same key and request within a tenant give the first answer again.

One file a key under `idempotency/<tenant>/`; the key itself is only there as its hash. While a request is worked on its
process holds the lock beside that file, which no other process of the same store can have: the kernel, or the lease in
a bucket, frees it when the process dies.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Header
from pydantic import ValidationError

from api.errors import BUSY_RETRY_S, ApiError
from api.schemas import DroppedRows
from curator.errors import IntegrityError, LockedError, MissingError
from curator.mix.files import tenant_path
from curator.recipe.base import Strict
from curator.store.store import Store

IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="the same key and request: the first answer again")
]
FOLDER = "idempotency"


class Remembered(Strict):
    """An answer as kept: which request it was to, and the mix (with what else it said) or the job that it named."""

    format_version: Literal[1] = 1
    request_sha256: str
    mix_id: str | None = None
    created: bool = False
    dropped: DroppedRows | None = None
    job_id: str | None = None
    at_s: float


@dataclass(frozen=True)
class Idempotency:
    """The keys of all tenants; holds nothing that another process would need."""

    store: Store
    ttl_s: float

    @contextmanager
    def holding(self, tenant: str, key: str) -> Iterator[None]:
        """Be the only request under a key, of all processes; raises ApiError 409 when another is at work."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.store.lock(_lock_path(tenant, key)))
            except LockedError as error:
                message = "a request with this Idempotency-Key is being worked on: wait for its answer"
                headers = {"Retry-After": str(BUSY_RETRY_S)}
                raise ApiError(409, "idempotency_key_in_use", message, headers=headers) from error
            yield

    def earlier(self, tenant: str, key: str, fingerprint: str) -> Remembered | None:
        """The answer given before; None without one, or where it is damaged. Raises ApiError 422 when it was to another
        request."""
        try:
            found = Remembered.model_validate(self.store.read_json(_path(tenant, key)))
        except (MissingError, IntegrityError, ValidationError):
            return None
        if time.time() - found.at_s > self.ttl_s:
            return None
        if found.request_sha256 != fingerprint:
            message = "this Idempotency-Key came with another request before: take a new key"
            raise ApiError(422, "idempotency_key_reused", message)
        return found

    def remember(self, tenant: str, key: str, answer: Remembered) -> None:
        """Keep an answer."""
        self.store.write_json(_path(tenant, key), answer.model_dump(mode="json"))

    @contextmanager
    def announcing(self, tenant: str, key: str, fingerprint: str) -> Iterator[Callable[[str], None]]:
        """What keeps the id of a job that is about to be made; an exception of the block forgets it again.

        After a kill between the two the key names a job that is not there, and the request is done again: never two.
        """

        def announce(job_id: str) -> None:
            self.remember(tenant, key, Remembered(request_sha256=fingerprint, job_id=job_id, at_s=time.time()))

        try:
            yield announce
        except BaseException:
            self.store.delete(_path(tenant, key))
            raise


def _path(tenant: str, key: str) -> str:
    return f"{_lock_path(tenant, key)}.json"


def _lock_path(tenant: str, key: str) -> str:
    tenant_path(tenant)
    return f"{FOLDER}/{tenant}/{hashlib.sha256(key.encode()).hexdigest()}"
