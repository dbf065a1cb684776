"""Who asks: from the Authorization header to a tenant and its scopes.

While a store has no key the service is open: one tenant, `local`, with every scope. The first key closes it.
"""

import ipaddress
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.errors import ApiError
from api.schemas import errors
from api.telemetry import log_event, note
from api.tenancy.keys import (
    SCOPES,
    Key,
    Scope,
    any_keys,
    find_key,
    opens,
    split_token,
)
from api.tenancy.rates import MINUTE_S, Bucket
from curator.errors import IntegrityError
from curator.mix.files import DEFAULT_TENANT
from curator.store.store import Store

CACHE_S = 2.0  # how long a revoked key may still pass, and a new one that was tried before may not
MAX_CACHED = 1024
MAX_KNOWN = 100_000
# What any route behind a key may answer.
GUARDED: dict[int | str, dict[str, Any]] = errors(401, 403, 429, 503)

_BEARER = HTTPBearer(auto_error=False, description="a token from `python -m api keys create`")


@dataclass(frozen=True)
class Principal:
    """Who asks: a tenant and what it may do."""

    tenant: str
    scopes: tuple[Scope, ...]
    key_id: str | None = None


_OPEN = Principal(DEFAULT_TENANT, SCOPES)


@dataclass
class Keyring:
    """The store's keys as one process sees them; `may_open` allows service without any key.

    An address may try `tries_per_minute` keys that were not known a moment ago, since each is a look into the store.
    """

    store: Store
    may_open: bool
    tries_per_minute: int | None = None
    _closed: bool = False
    _cache: dict[str, tuple[float, Key | None]] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)  # ids that have opened before: others' guesses do not stop them
    _tries: dict[str, Bucket] = field(default_factory=dict)

    def identify(self, token: str | None, address: str = "") -> Principal:
        """Who holds a token; raises ApiError 401, the same for an absent, unknown, expired or revoked one.

        Raises ApiError 429 when the client's address has tried too many.
        """
        if self.is_open():
            return _OPEN
        named = split_token(token or "")
        key = self._find(named[0], address) if named else None
        if named is None or key is None or not opens(key, named[1]):
            opens(None, "")
            raise ApiError(
                401,
                "unauthorized",
                "this needs a valid API key: send `Authorization: Bearer TOKEN`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Principal(key.tenant, key.scopes, key.key_id)

    def is_open(self) -> bool:
        """Whether everybody is served as one tenant: there was never a key, and the settings allow it."""
        self._closed = self._closed or any_keys(self.store)
        return not self._closed and self.may_open

    def is_at_hand(self, token: str | None) -> bool:
        """Whether `identify` needs no wait: a key that was looked up a moment ago, or no keys in a store on this disk.

        Then it is called where the request is served; a thread for it would cost more than a small request.
        """
        if not self._closed:
            return self.store.local_path("") is not None
        named = split_token(token or "")
        kept = self._cache.get(named[0]) if named else None
        return kept is not None and time.monotonic() - kept[0] < CACHE_S

    def _find(self, key_id: str, address: str) -> Key | None:
        kept = self._cache.get(key_id)
        if kept is not None and time.monotonic() - kept[0] < CACHE_S:
            return kept[1]
        bucket = None if key_id in self._known else self._count_try(address)
        try:
            key = find_key(self.store, key_id)
        except IntegrityError as error:  # it opens nothing, as if it were not there; `keys list` shows it
            log_event(logging.WARNING, "damaged key file", error)
            key = None
        if key is not None and bucket is not None:  # a good key is not counted
            bucket.level += 1
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[key_id] = (time.monotonic(), key)
        if key is not None and len(self._known) < MAX_KNOWN:
            self._known.add(key_id)
        return key

    def _count_try(self, address: str) -> Bucket | None:
        """Count a try of an address; raises ApiError 429 when there were too many."""
        if self.tries_per_minute is None:
            return None
        now_s, capacity = time.monotonic(), float(self.tries_per_minute)
        if len(self._tries) >= MAX_CACHED:
            self._tries.clear()
        bucket = self._tries.setdefault(_network(address), Bucket(capacity, MINUTE_S, capacity, now_s))
        wait_s = bucket.take(1, now_s)
        if wait_s:
            headers = {"Retry-After": str(math.ceil(wait_s))}
            raise ApiError(429, "too_many_keys", "this address has tried too many unknown keys", headers=headers)
        return bucket


def _network(address: str) -> str:
    """The address, of IPv6 the network that one client usually has as a whole."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network(f"{address}/64", strict=False)) if found.version == 6 else address


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def holding_any(*scopes: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency: who asks, if the key has one of these scopes and its request rate allows.

    Raises ApiError 401 without a valid key, 403 without such a scope, 429 beyond the rate.
    """

    async def principal_with_scope(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> Principal:
        service = request.app.state.service
        token = credentials.credentials if credentials is not None else None
        address = request.client.host if request.client is not None else ""
        keyring: Keyring = service.keyring
        if keyring.is_at_hand(token):
            principal = keyring.identify(token, address)
        else:
            principal = await run_in_threadpool(keyring.identify, token, address)
        note(tenant=principal.tenant, key_id=principal.key_id)
        service.quotas.count_request(principal.tenant)
        if not set(scopes) & set(principal.scopes):
            shown = " or ".join(f"`{scope}`" for scope in scopes)
            raise ApiError(403, "scope_missing", f"this needs a key with the scope {shown}")
        return principal

    return principal_with_scope


def holding(scope: Scope) -> Callable[..., Awaitable[str]]:
    """The same for one scope: the tenant that asks."""

    async def tenant_with_scope(principal: Annotated[Principal, Depends(holding_any(scope))]) -> str:
        return principal.tenant

    return tenant_with_scope


MixTenant = Annotated[str, Depends(holding("mix"))]
SqlTenant = Annotated[str, Depends(holding("sql"))]
AuditTenant = Annotated[str, Depends(holding("audit"))]
AdminTenant = Annotated[str, Depends(holding("admin"))]
