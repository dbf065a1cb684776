"""The outermost layer: request ids, one log line a request, and an answer when our own code fails."""

import logging
import re
import time
import uuid

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import internal_error
from api.logs import log_event
from api.metrics import Metrics
from api.service import Service

REQUEST_ID_HEADER = b"x-request-id"
CLIENT_LEFT = 499  # in the log alone: nobody is there to read an answer
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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
        self.started_s = time.perf_counter()

    async def run(self) -> None:
        self.metrics.running.inc()
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnect:
            self.status = self.status or CLIENT_LEFT
        except Exception as error:
            log_event(logging.ERROR, "request failed", error, request_id=self.request_id, route=self.route)
            if self.status is not None:
                raise _CutShortError from None  # too late for an error body: the server drops the connection
            await internal_error(self.request_id)(self.scope, self.receive, self.send)
        finally:
            self.metrics.running.dec()
            self._log()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (REQUEST_ID_HEADER, self.request_id.encode())]
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


class _CutShortError(Exception):
    """An answer broke off after its first bytes; the reason is in the log under the request id."""


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER and _GIVEN_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
