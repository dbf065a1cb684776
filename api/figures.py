"""What a corpus's scorers and gap look like: computed with DuckDB in this process, few at a time, and kept.

A tenant computes one at a time and waits in a line of its own, so that its questions hold up nobody else's, and never
in the threads that other requests need. Answers are kept by all that they were computed from.
"""

from asyncio import Lock, Semaphore, wait_for
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from api.errors import ApiError
from api.quotas import BUSY_RETRY_S, Quotas

TENANT_LINE = 8  # figures of one tenant that are computed or wait
MAX_WAIT_S = 60.0
MAX_KEPT = 256


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
