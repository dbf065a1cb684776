"""What keeps web pages off a service without keys: foreign hosts and origins are refused.

A browser runs pages of anybody beside the service. Such a page may send it requests that change something, and by
DNS rebinding (a name of its own that suddenly means 127.0.0.1) also read what comes back. Keys end both.
"""

import re
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import is_loopback
from api.errors import error_response
from api.service import Service

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class _Refusal:
    code: str
    message: str


_FOREIGN_HOST = _Refusal(
    "foreign_host",
    "a service without API keys answers at localhost, 127.0.0.1, [::1] and its allowed_hosts alone; "
    "`python -m api keys create` makes a key",
)
_FOREIGN_ORIGIN = _Refusal(
    "foreign_origin",
    "a service without API keys takes no such request from another site's page; "
    "`python -m api keys create` makes a key",
)


class RefuseForeign:
    """ASGI middleware; it matters only while the service is open (see `Keyring`)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it with 403."""
        if scope["type"] == "http":
            service: Service = scope["app"].state.service
            refusal = _refusal(scope, is_loopback(service.settings.host), service.settings.allowed_hosts)
            # Asked last: whether there are keys is a look into the store.
            if refusal is not None and await run_in_threadpool(service.keyring.is_open):
                await error_response(403, refusal.code, refusal.message)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _refusal(scope: Scope, loopback: bool, allowed: str) -> _Refusal | None:
    hosts = _values(scope, b"host")
    named = {name.strip().lower() for name in allowed.split(",")} - {""}
    if loopback and not (len(hosts) == 1 and (_LOCAL_HOST.fullmatch(hosts[0]) or hosts[0] in named)):
        return _FOREIGN_HOST
    if scope["method"] in _SAFE_METHODS:
        return None
    own = {f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts}  # https: a proxy may end TLS
    return None if own.issuperset(_values(scope, b"origin")) else _FOREIGN_ORIGIN


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for key, value in scope["headers"] if key == name]
