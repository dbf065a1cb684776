"""Limits of one process: what each tenant may use, and how many figures of corpora are computed at once.

`Quotas` counts requests, rows and bytes by the clock, and builds and statements at the same time; N processes behind a
balancer allow N times as much. `Figures` computes a corpus's scorers and gap with DuckDB and keeps the answers under
all that they were computed from. Each tenant waits in its own line there, so that it delays nobody else, and never in
the threads that other requests need.
"""

import math
import threading
import time
from asyncio import Lock, Semaphore, wait_for
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from api.errors import BUSY_RETRY_S, ApiError
from api.settings import Settings

MINUTE_S, HOUR_S = 60.0, 3600.0
MAX_BUCKETS = 10_000
TENANT_LINE = 8  # figures of one tenant that are computed or wait
MAX_WAIT_S = 60.0
MAX_KEPT = 256


@dataclass
class Bucket:
    """A token bucket: `capacity` units, refilled evenly over `period_s` seconds."""

    capacity: float
    period_s: float
    level: float = 0.0
    at_s: float = 0.0

    def take(self, amount: float, now_s: float) -> float:
        """Take units; returns 0.0, or the seconds after which they would be there (then none is taken)."""
        rate = self.capacity / self.period_s
        self.level = min(self.capacity, self.level + (now_s - self.at_s) * rate)
        self.at_s = now_s
        if amount <= self.level:
            self.level -= amount
            return 0.0
        return (amount - self.level) / rate


@dataclass
class Quotas:
    """The use of every tenant; thread-safe."""

    settings: Settings
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)
    _running: dict[tuple[str, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count_request(self, tenant: str) -> None:
        """Count one request; raises ApiError 429 beyond the rate."""
        self._take(tenant, "requests", 1, self.settings.tenant_requests_per_minute, MINUTE_S)

    def count_rows(self, tenant: str, n_rows: int) -> None:
        """Count rows of a data set; raises ApiError 413 when they could never fit, 429 when they do not now."""
        self._take(tenant, "rows", n_rows, self.settings.tenant_rows_per_hour, HOUR_S)

    def check_bytes(self, tenant: str, n_bytes: int) -> None:
        """Count nothing yet of an upload that says its size; raises as `count_rows`."""
        self._take(tenant, "bytes", n_bytes, self.settings.tenant_bytes_per_hour, HOUR_S, only_look=True)

    def count_bytes(self, tenant: str, n_bytes: int, n_before: int = 0) -> None:
        """Count bytes of an upload as they come, `n_before` of which were counted; raises as `count_rows`."""
        capacity = self.settings.tenant_bytes_per_hour
        if capacity is not None and n_before + n_bytes > capacity:
            raise _never("bytes", n_before + n_bytes, capacity, HOUR_S)
        self._take(tenant, "bytes", n_bytes, capacity, HOUR_S)

    @contextmanager
    def audit(self, tenant: str) -> Iterator[None]:
        """Count one audit, unless the block refuses it; raises ApiError 429 beyond the rate."""
        self._take(tenant, "audits", 1, self.settings.tenant_audits_per_hour, HOUR_S)
        try:
            yield
        except BaseException:
            self._give_back(tenant, "audits", 1)
            raise

    @contextmanager
    def place(self, tenant: str, what: str, bound: int) -> Iterator[None]:
        """One of a tenant's own places for something that runs long; raises ApiError 429 when all are taken."""
        key = (tenant, what)
        with self._lock:
            taken = self._running.get(key, 0)
            if taken >= bound:
                message = f"{taken} {what} of yours run or wait already, the bound is {bound}: try again later"
                raise ApiError(429, "too_many_at_once", message, headers={"Retry-After": str(BUSY_RETRY_S)})
            self._running[key] = taken + 1
        try:
            yield
        finally:
            with self._lock:
                self._running[key] -= 1
                if not self._running[key]:
                    del self._running[key]

    def n_taken(self, tenant: str, what: str) -> int:
        """How many of a tenant's own places are taken."""
        with self._lock:
            return self._running.get((tenant, what), 0)

    def _give_back(self, tenant: str, what: str, amount: int) -> None:
        with self._lock:
            bucket = self._buckets.get((tenant, what))
            if bucket is not None:
                bucket.level = min(bucket.capacity, bucket.level + amount)

    def _take(
        self, tenant: str, what: str, amount: int, capacity: int | None, period_s: float, *, only_look: bool = False
    ) -> None:
        if capacity is None or amount <= 0:
            return
        if amount > capacity:
            raise _never(what, amount, capacity, period_s)
        now_s = time.monotonic()
        with self._lock:
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.clear()
            bucket = self._buckets.setdefault((tenant, what), Bucket(capacity, period_s, capacity, now_s))
            wait_s = bucket.take(amount, now_s)
            if only_look and not wait_s:
                bucket.level += amount
        if wait_s:
            seconds = max(1, math.ceil(wait_s))
            message = f"the quota of {what} is used up; it allows this again in {seconds} s"
            raise ApiError(429, "quota_used_up", message, headers={"Retry-After": str(seconds)})


def _never(what: str, amount: int, capacity: int, period_s: float) -> ApiError:
    """The refusal of what no waiting would make fit."""
    period = "a minute" if period_s == MINUTE_S else "an hour"
    return ApiError(413, "over_quota", f"{amount} {what} are over the quota of {capacity} {period}: split it")


@dataclass
class Figures:
    """The figures of one process; `n_places` are computed at a time."""

    quotas: Quotas
    n_places: int
    _places: Semaphore = field(init=False)
    _lines: dict[str, Lock] = field(default_factory=dict)
    _kept: "OrderedDict[Hashable, dict[str, Any]]" = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._places = Semaphore(self.n_places)

    async def of(self, tenant: str, key: Hashable, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `compute` gives, or gave under the same key before; it runs in a thread.

        Raises ApiError 429 when the tenant has enough of them waiting, 503 when no place is free in time.
        """
        if key not in self._kept:
            with self.quotas.place(tenant, "figures", TENANT_LINE):
                async with self._line(tenant), self._place():
                    if key not in self._kept:  # by the one before in the line
                        self._kept[key] = await run_in_threadpool(compute)
        self._kept.move_to_end(key)
        found = self._kept[key]
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return found

    @asynccontextmanager
    async def _line(self, tenant: str) -> AsyncIterator[None]:
        lock = self._lines.setdefault(tenant, Lock())
        try:
            async with lock:
                yield
        finally:
            if not self.quotas.n_taken(tenant, "figures") > 1:
                self._lines.pop(tenant, None)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            await wait_for(self._places.acquire(), MAX_WAIT_S)
        except TimeoutError as error:
            headers = {"Retry-After": str(BUSY_RETRY_S)}
            raise ApiError(503, "busy", "other figures are computed: try again later", headers=headers) from error
        try:
            yield
        finally:
            self._places.release()
