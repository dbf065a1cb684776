"""ASGI middleware: foreign web pages are refused, HEAD is answered, and every request is logged.

`RefuseForeign` protects a service without keys from a browser beside it: a page of another site could send requests
that change something, and by DNS rebinding (a name of its own that suddenly means 127.0.0.1) also read the answers.
`HeadAsGet` answers HEAD wherever there is GET (RFC 9110, section 9.3.2), which FastAPI's routes do not. `Observe` is
the outermost: it gives each request an id and one log line, and answers when our own code fails.
"""

import logging
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import is_loopback
from api.errors import error_response, internal_error, system_failure
from api.notes import taking_notes
from api.service import Service
from api.telemetry import Metrics, log_event
from curator.errors import StoreError

REQUEST_ID_HEADER = b"x-request-id"
_NO_SNIFF = (b"x-content-type-options", b"nosniff")
_NO_STORE = (b"cache-control", b"no-store")  # for what says nothing of its own: lists, states, errors
CLIENT_LEFT = 499  # in the log alone: nobody is there to read an answer
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ID = re.compile(r"[0-9a-f]{32}")
_MADE = re.compile(r"/v1/(mixes|jobs)/([0-9a-f]{32})$")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
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


# The download of a mix answers HEAD itself: run as GET it would read the whole file.
_OWN = re.compile(r"/v1/mixes/[^/]+/data$")


class HeadAsGet:
    """ASGI middleware: a HEAD request runs as GET, and its body is dropped."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or _OWN.search(scope["path"]):
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        inner = dict(scope, method="GET")
        try:
            await self.app(inner, receive, send_without_body)
        finally:
            scope.update(item for item in inner.items() if item[0] not in scope)  # the layers around read the route


class Observe:
    """ASGI middleware; a caller's own well-formed X-Request-Id is kept, otherwise one is made."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Exchange(self.app, scope, receive, send).run()


class _Exchange:
    """One request and its answer, as far as both are observed."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self.app, self.scope, self.receive, self._send = app, scope, receive, send
        self.request_id = _request_id(scope)
        self.status: int | None = None
        self.n_bytes = 0
        self.n_bytes_in = 0
        self.headers: dict[bytes, bytes] = {}
        self.notes: dict[str, Any] = {}
        self.started_s = time.perf_counter()

    async def run(self) -> None:
        with taking_notes() as self.notes:
            await self._run()

    async def _run(self) -> None:
        self.metrics.running.inc()
        try:
            await self.app(self.scope, self._receive_counted, self.send)
        except ClientDisconnect:
            self.status = self.status or CLIENT_LEFT
        except Exception as error:
            log_event(logging.ERROR, "request failed", error, request_id=self.request_id, route=self.route)
            if self.status is not None:
                raise _CutShortError from None  # too late for an error body: the server drops the connection
            answer = system_failure(error) or internal_error(self.request_id)
            await answer(self.scope, self.receive, self.send)
        finally:
            self.metrics.running.dec()
            self._log()

    async def _receive_counted(self) -> Message:
        message = await self.receive()
        self.n_bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message.get("headers", []))
            headers = [*message.get("headers", []), (REQUEST_ID_HEADER, self.request_id.encode()), _NO_SNIFF]
            if not any(name.lower() == b"cache-control" for name, _ in headers):
                headers.append(_NO_STORE)
            message["headers"] = headers
        elif message["type"] == "http.response.body":
            self.n_bytes += len(message.get("body", b""))
        await self._send(message)

    @property
    def route(self) -> str | None:
        """The route's template: a path as typed could hold anything."""
        return getattr(self.scope.get("route"), "path", None)

    @property
    def metrics(self) -> Metrics:
        service: Service = self.scope["app"].state.service
        return service.metrics

    def _log(self) -> None:
        method = self.scope["method"] if self.scope["method"] in _METHODS else "OTHER"
        seconds = time.perf_counter() - self.started_s
        self.metrics.observe(self.route, method, self.status, self.n_bytes, seconds)
        log_event(
            logging.INFO,
            "request",
            request_id=self.request_id,
            method=method,
            route=self.route,
            status=self.status,
            n_bytes=self.n_bytes,
            duration_ms=round(seconds * 1000, 1),
        )
        if "tenant" in self.notes:
            self._log_usage(method, seconds)

    def _log_usage(self, method: str, seconds: float) -> None:
        """Who did what, for the operator: ids alone, for a path as typed could hold anything."""
        service: Service = self.scope["app"].state.service
        n_rows = self.headers.get(b"x-ballast-rows", b"").decode()
        try:
            service.usage.add(
                action=f"{method} {self.route}",
                **self.notes,
                **self._ids(),
                status=self.status,
                n_rows_out=int(n_rows) if n_rows.isdecimal() else None,
                n_bytes_in=self.n_bytes_in,
                n_bytes_out=self.n_bytes,
                duration_ms=round(seconds * 1000, 1),
                request_id=self.request_id,
            )
        except StoreError as error:
            log_event(logging.ERROR, "usage is not logged", error, request_id=self.request_id)

    def _ids(self) -> dict[str, str]:
        """The mix and the job that the path or the answer's Location names."""
        named = {name: str(value) for name, value in self.scope.get("path_params", {}).items()}
        ids = {name: named[name] for name in ("mix_id", "job_id") if _ID.fullmatch(named.get(name, ""))}
        made = _MADE.search(self.headers.get(b"location", b"").decode("latin-1"))
        return ids if made is None else {**ids, {"mixes": "mix_id", "jobs": "job_id"}[made[1]]: made[2]}


class _CutShortError(Exception):
    """An answer broke off after its first bytes; the reason is in the log under the request id."""


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER and _GIVEN_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
