"""What one running service holds: its settings, its store, and the places for builds."""

from asyncio import Semaphore
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from api.auth import Keyring, is_loopback
from api.errors import ApiError
from api.quotas import Quotas
from api.settings import Settings
from curator.store import Store

RETRY_AFTER_S = 5


@dataclass
class Service:
    """Shared by all requests of a process; holds nothing that another process would need."""

    settings: Settings
    store: Store
    n_waiting: int = 0
    keyring: Keyring = field(init=False)
    quotas: Quotas = field(init=False)
    _builds: Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.keyring = Keyring(self.store, self.settings.open or is_loopback(self.settings.host))
        self.quotas = Quotas(self.settings)
        self._builds = Semaphore(self.settings.max_builds)

    @asynccontextmanager
    async def build_place(self, tenant: str) -> AsyncIterator[None]:
        """One of the places for builds, waiting for it.

        Raises ApiError 429 when the tenant has its own share already, 503 when too many wait.
        """
        with self.quotas.place(tenant, "builds", self.settings.tenant_builds):
            async with self._place():
                yield

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._builds.locked() and self.n_waiting >= self.settings.max_waiting_builds:
            raise ApiError(
                503,
                "busy",
                f"{self.settings.max_builds} mixes are being built and {self.n_waiting} wait: try again later",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self.n_waiting += 1
        try:
            await self._builds.acquire()
        finally:
            self.n_waiting -= 1
        try:
            yield
        finally:
            self._builds.release()


def service_of(request: Request) -> Service:
    """The service that answers a request."""
    service: Service = request.app.state.service
    return service
