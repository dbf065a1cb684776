"""Idempotency-Key: the same key and request within a tenant give the first answer again.

One file a key under `idempotency/<tenant>/`; the key itself is only there as its hash.
"""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import Header
from pydantic import ValidationError

from api.errors import ApiError
from api.schemas import DroppedRows
from curator.errors import MissingError
from curator.mix.files import tenant_path
from curator.recipe.base import Strict
from curator.store.store import Store

IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="the same key and request: the first answer again")
]
FOLDER = "idempotency"
RETRY_S = 5


class Remembered(Strict):
    """An answer as kept: which request it was to, and the mix (with what else it said) or the job that it named."""

    format_version: Literal[1] = 1
    request_sha256: str
    mix_id: str | None = None
    created: bool = False
    dropped: DroppedRows | None = None
    job_id: str | None = None
    at_s: float


@dataclass
class Idempotency:
    """The keys of all tenants; those in work are known to this process alone."""

    store: Store
    ttl_s: float
    _running: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def holding(self, tenant: str, key: str) -> Iterator[None]:
        """Be the only request under a key; raises ApiError 409 when another is at work."""
        path = _path(tenant, key)
        with self._lock:
            if path in self._running:
                message = "a request with this Idempotency-Key is being worked on: wait for its answer"
                raise ApiError(409, "idempotency_key_in_use", message, headers={"Retry-After": str(RETRY_S)})
            self._running.add(path)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(path)

    def earlier(self, tenant: str, key: str, fingerprint: str) -> Remembered | None:
        """The answer given before; None without one. Raises ApiError 422 when it was to another request."""
        try:
            found = Remembered.model_validate(self.store.read_json(_path(tenant, key)))
        except (MissingError, ValidationError):
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


def _path(tenant: str, key: str) -> str:
    tenant_path(tenant)
    return f"{FOLDER}/{tenant}/{hashlib.sha256(key.encode()).hexdigest()}.json"
