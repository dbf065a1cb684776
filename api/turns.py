"""Places for work that takes long, given to tenants in turn.

Each tenant waits in a line of its own. A free place goes to the tenant that had the fewest turns for its weight, not to
whoever came first, so that a tenant with much work delays another by what is running and no more. While others wait,
one place of several is always kept from a tenant that has all the rest.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Turns:
    """`n_places` places of one event loop; `weight_of` gives the turns of a tenant for each one of another.

    `keeps_one`: one place of several is kept from a tenant that has the rest even while nobody waits.
    """

    n_places: int
    weight_of: Callable[[str], int] = lambda _: 1
    keeps_one: bool = False
    _running: Counter[str] = field(default_factory=Counter)
    _lines: dict[str, deque[asyncio.Future[None]]] = field(default_factory=dict)
    _turns: dict[str, float] = field(default_factory=dict)  # taken, over the weight; of tenants that wait or run
    _latest: float = 0.0  # turns of the tenant that was served last

    @property
    def n_waiting(self) -> int:
        """How many wait for a place."""
        return sum(map(len, self._lines.values()))

    @property
    def is_full(self) -> bool:
        """Whether all places are taken."""
        return self._running.total() >= self.n_places

    @asynccontextmanager
    async def place(self, tenant: str, timeout_s: float | None = None) -> AsyncIterator[None]:
        """One place, waiting for it; raises TimeoutError when there is none in time."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Who was away does not get the turns that it left out.
        self._turns[tenant] = max(self._turns.get(tenant, 0.0), self._latest)
        self._lines.setdefault(tenant, deque()).append(granted)
        self._serve()
        try:
            async with asyncio.timeout(timeout_s):
                await granted
        except BaseException:
            if granted.done() and not granted.cancelled():  # granted in the very moment of leaving
                self._give_back(tenant)
            else:
                self._leave(tenant, granted)
            raise
        try:
            yield
        finally:
            self._give_back(tenant)

    def _serve(self) -> None:
        """Give out places as long as there is one for somebody."""
        while not self.is_full:
            tenants = [tenant for tenant in self._lines if self._may_run(tenant)]
            if not tenants:
                return
            tenant = min(tenants, key=self._turns.__getitem__)  # of equals whoever waits longest
            granted = self._lines[tenant].popleft()
            if not self._lines[tenant]:
                del self._lines[tenant]
            else:
                self._lines[tenant] = self._lines.pop(tenant)  # to the end of the order
            self._latest = self._turns[tenant]
            self._turns[tenant] += 1 / max(1, self.weight_of(tenant))
            self._running[tenant] += 1
            granted.set_result(None)

    def _may_run(self, tenant: str) -> bool:
        is_alone = len(self._lines) == 1 and not self.keeps_one
        return is_alone or self._running[tenant] < max(1, self.n_places - 1)

    def _give_back(self, tenant: str) -> None:
        self._running[tenant] -= 1
        self._forget(tenant)
        self._serve()

    def _leave(self, tenant: str, granted: "asyncio.Future[None]") -> None:
        line = self._lines.get(tenant, deque())
        if granted in line:
            line.remove(granted)
        if not line:
            self._lines.pop(tenant, None)
        self._forget(tenant)
        self._serve()

    def _forget(self, tenant: str) -> None:
        """Keep nothing of a tenant that neither waits nor runs and has no turns ahead of the others."""
        if not self._running[tenant]:
            del self._running[tenant]
            if tenant not in self._lines and self._turns.get(tenant, 0.0) <= self._latest:
                self._turns.pop(tenant, None)
