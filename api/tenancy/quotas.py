"""Limits of one process: what each tenant may use, and how many figures of corpora are computed at once.

`Quotas` counts requests, rows and bytes by the clock, and builds and statements at the same time; N processes behind a
balancer allow N times as much. `Figures` computes a corpus's scorers and gap with DuckDB and keeps the answers under
all that they were computed from. Tenants have their turns there (`turns`), and never wait in the threads that other
requests need.
"""

import math
import threading
import time
from asyncio import Lock
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool

from api.errors import BUSY_RETRY_S, ApiError
from api.settings import Settings
from api.telemetry import note
from api.tenancy.rates import HOUR_S, MINUTE_S, Bucket
from api.tenancy.tenants import Tenants
from api.tenancy.turns import Turns
from curator.store.store import Store

MAX_BUCKETS = 10_000
TENANT_LINE = 8  # figures of one tenant that are computed or wait
MAX_WAIT_S = 60.0
MAX_KEPT = 256
STORED = ("mixes", "jobs", "openai")  # folders of the store in which each tenant has one
RECORD_BYTES = 16 * 1024  # about what a mix's manifest or a job's record takes
TENANT_FULL = "tenant_storage_full"
MEASURED_S = 10.0  # for how long a measured size is taken as it is


@dataclass
class Quotas:
    """The use of every tenant; thread-safe."""

    settings: Settings
    tenants: Tenants | None = None
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)
    _running: dict[tuple[str, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count_request(self, tenant: str) -> None:
        """Count one request; raises ApiError 429 beyond the rate."""
        self._take(tenant, "requests", 1, self._bound(tenant, "tenant_requests_per_minute"), MINUTE_S)

    def count_rows(self, tenant: str, n_rows: int) -> None:
        """Count rows of a data set; raises ApiError 413 when they could never fit, 429 when they do not now."""
        note(n_rows_in=n_rows)
        self._take(tenant, "rows", n_rows, self._bound(tenant, "tenant_rows_per_hour"), HOUR_S)

    def check_bytes(self, tenant: str, n_bytes: int) -> None:
        """Count nothing yet of an upload that says its size; raises as `count_rows`."""
        self._take(tenant, "bytes", n_bytes, self._bound(tenant, "tenant_bytes_per_hour"), HOUR_S, only_look=True)

    def count_bytes(self, tenant: str, n_bytes: int, n_before: int = 0) -> None:
        """Count bytes of an upload as they come, `n_before` of which were counted; raises as `count_rows`."""
        capacity = self._bound(tenant, "tenant_bytes_per_hour")
        if capacity is not None and n_before + n_bytes > capacity:
            raise _never("bytes", n_before + n_bytes, capacity, HOUR_S)
        self._take(tenant, "bytes", n_bytes, capacity, HOUR_S)

    @contextmanager
    def audit(self, tenant: str) -> Iterator[None]:
        """Count one audit, unless the block refuses it; raises ApiError 429 beyond the rate."""
        self._take(tenant, "audits", 1, self._bound(tenant, "tenant_audits_per_hour"), HOUR_S)
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

    def _bound(self, tenant: str, name: str) -> int | None:
        bound: int | None = (self.tenants or Tenants(self.settings)).quota(tenant, name)
        return bound

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


@dataclass
class Briefly:
    """What a question about the store gave, for `kept_s` seconds; one thread at a time asks."""

    kept_s: float
    _found: tuple[float, bool] = (float("-inf"), False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, ask: Callable[[], bool]) -> bool:
        """The answer, computed again only when the last one is too old."""
        with self._lock:
            if time.monotonic() - self._found[0] > self.kept_s:
                answer = ask()
                self._found = (time.monotonic(), answer)  # after it: a store that is away answers late
            return self._found[1]


@dataclass
class StoredBytes:
    """What each tenant keeps in the store, against the bound `tenant_stored_bytes`."""

    store: Store
    bound_of: Callable[[str], int | None]  # by tenant
    _found: dict[str, tuple[float, int]] = field(default_factory=dict)  # when it was measured, and what came since
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, tenant: str, n_more: int) -> None:
        """Count bytes that are to be kept; raises ApiError 507 where they do not fit. It may list the tenant's files.

        The size of an upload stands for that of its mix, which is measured a little later.
        """
        bound = self.bound_of(tenant)
        if bound is None:
            return
        n_more += RECORD_BYTES
        with self._lock:
            measured_s, n_bytes = self._found.get(tenant, (float("-inf"), 0))
            if time.monotonic() - measured_s > MEASURED_S or n_bytes + n_more > bound:
                measured_s, n_bytes = time.monotonic(), sum(self.store.n_bytes(f"{top}/{tenant}") for top in STORED)
            if n_bytes + n_more > bound:
                message = (
                    f"your mixes, jobs, files and models take {n_bytes:,} bytes, with these {n_more:,} they are over "
                    f"the bound of {bound:,}: delete some (GET /v1/mixes, /v1/jobs, /v1/files and /v1/models list "
                    "them); the parts of /v1/uploads expire after one hour"
                )
                raise ApiError(507, TENANT_FULL, message)
            if len(self._found) > MAX_BUCKETS:
                self._found.clear()
            self._found[tenant] = (measured_s, n_bytes + n_more)


def _never(what: str, amount: int, capacity: int, period_s: float) -> ApiError:
    """The refusal of what no waiting would make fit."""
    period = "a minute" if period_s == MINUTE_S else "an hour"
    return ApiError(413, "over_quota", f"{amount} {what} are over the quota of {capacity} {period}: split it")


@dataclass
class Figures:
    """The figures of one process, computed in the places of `turns`."""

    quotas: Quotas
    turns: Turns
    _computing: "WeakValueDictionary[Hashable, Lock]" = field(default_factory=WeakValueDictionary)
    _kept: "OrderedDict[Hashable, dict[str, Any]]" = field(default_factory=OrderedDict)

    async def of(self, tenant: str, key: Hashable, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `compute` gives, or gave under the same key before; it runs in a thread.

        Raises ApiError 429 when the tenant has enough of them waiting, 503 when no place is free in time.
        """
        if key not in self._kept:
            with self.quotas.place(tenant, "figures", TENANT_LINE):
                lock = self._computing.setdefault(key, Lock())
                async with lock, in_time(self.turns, tenant, MAX_WAIT_S, "figures"):
                    if key not in self._kept:  # by the one before
                        self._kept[key] = await run_in_threadpool(compute)
        self._kept.move_to_end(key)
        found = self._kept[key]
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return found


@asynccontextmanager
async def in_time(turns: Turns, tenant: str, timeout_s: float, what: str) -> AsyncIterator[None]:
    """A place within `timeout_s` seconds; raises ApiError 503 without one."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(turns.place(tenant, timeout_s))
        except TimeoutError as error:
            headers = {"Retry-After": str(BUSY_RETRY_S)}
            raise ApiError(503, "busy", f"other {what} run: try again later", headers=headers) from error
        yield
