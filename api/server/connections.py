"""Connections: how many there may be, how long each may take, and how many descriptors they leave for the work.

`BoundedProtocol` is uvicorn's protocol for HTTP/1.1 with four more rules. A connection beyond the bounds is answered
503 at once. A request's head must arrive within `head_timeout_s`. While a body or an answer is on its way, it must make
progress in each `body_timeout_s`. A descriptor that is missing is answered and logged, never fatal. `TlsListener`
counts connections that have not spoken TLS yet.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from api.errors import BUSY_RETRY_S, error_body
from api.settings import Settings
from api.telemetry import log_event
from curator.errors import BadInputError

WORK_DESCRIPTORS = 24  # kept for builds, statements and the store, besides those of each place for them
PLACE_DESCRIPTORS = 6  # of one build or statement: its files, DuckDB's, the pipes of its process
CONNECTION_DESCRIPTORS = 2  # of one connection: its socket, and the file that it sends or fetches
LEAST_CONNECTIONS = 4
LINGERING_SHARE = 8  # refused connections whose answer is still being fetched: one for each so many served ones
LINGER_S = 1.0
CHECK_S = 1.0  # between two looks at a connection
LEAST_BODY_BYTES = 16 * 1024  # of a body in each `body_timeout_s`
REPORT_S = 10.0  # between two lines about refused connections


def raise_descriptor_limit() -> int:
    """Set the soft limit of open descriptors to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**31


def n_open_descriptors() -> int:
    """How many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # the listing's own


@dataclass
class Connections:
    """The bounds of all connections, and who has how many."""

    n_most: int
    n_most_of_address: int
    head_s: float
    body_s: float
    by_address: Counter[str] = field(default_factory=Counter)
    n_lingering: int = 0
    _n_refused: int = 0
    _reported_s: float = float("-inf")

    def take(self, address: str) -> bool:
        """Count one more connection; False, and nothing counted, where there are enough."""
        if self.by_address.total() >= self.n_most or self.by_address[address] >= self.n_most_of_address:
            return False
        self.by_address[address] += 1
        return True

    def give_back(self, address: str) -> None:
        """One connection of an address has ended."""
        self.by_address[address] -= 1
        if not self.by_address[address]:
            del self.by_address[address]

    def report_refused(self, now_s: float) -> None:
        """Log that connections are refused, now and again and without their addresses."""
        self._n_refused += 1
        if now_s - self._reported_s >= REPORT_S:
            log_event(logging.WARNING, "connections refused", n_refused=self._n_refused, n_most=self.n_most)
            self._n_refused, self._reported_s = 0, now_s


def connection_bounds(settings: Settings, n_descriptors: int) -> Connections:
    """The bounds under a limit of open descriptors; fewer than `max_connections` where it allows no more.

    Raises BadInputError when the limit leaves room for next to none.
    """
    reserve = WORK_DESCRIPTORS + PLACE_DESCRIPTORS * min(settings.max_builds + settings.max_sql, 64)
    free = n_descriptors - n_open_descriptors()
    # Of a low limit half is kept at least: then builds and statements may meet it, and are answered 503.
    n_room = max(free - reserve, min(free // 2, 64) - LINGERING_SHARE) // CONNECTION_DESCRIPTORS
    if n_room < LEAST_CONNECTIONS:
        raise BadInputError(
            f"the limit of {n_descriptors} open files leaves no room for connections: raise it (ulimit -n 1024)"
        )
    n_most = min(settings.max_connections, n_room)
    of_address = settings.max_address_connections or max(LEAST_CONNECTIONS, n_most // 2)
    return Connections(n_most, min(of_address, n_most), settings.head_timeout_s, settings.body_timeout_s)


class TlsListener(socket.socket):
    """A listening socket that counts connections before their TLS handshake, which may never end.

    Beyond `bounds` one is closed at once. They are somewhat wider than those of requests, so that a client past those
    is still answered.
    """

    def __init__(self, listener: socket.socket, bounds: Connections) -> None:
        super().__init__(listener.family, listener.type, listener.proto, fileno=listener.detach())
        more = max(bounds.n_most // LINGERING_SHARE, LINGERING_SHARE)
        self._bounds = replace(
            bounds,
            n_most=bounds.n_most + more,
            n_most_of_address=bounds.n_most_of_address + more,
            by_address=Counter(),
        )

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; raises ConnectionAbortedError, which event loops pass over, for one too many."""
        accepted, address = super().accept()
        if not self._bounds.take(address[0]):
            accepted.close()
            self._bounds.report_refused(time.monotonic())
            raise ConnectionAbortedError
        return _Counted(accepted, partial(self._bounds.give_back, address[0])), address


class _Counted(socket.socket):
    """An accepted connection that calls `give_back` when it is closed."""

    def __init__(self, accepted: socket.socket, give_back: Callable[[], None]) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._give_back: Callable[[], None] | None = give_back

    def close(self) -> None:
        """Close it; again it does nothing."""
        super().close()
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


def bounded_protocol(connections: Connections) -> type["BoundedProtocol"]:
    """The protocol class for one server."""
    return type("BoundProtocol", (BoundedProtocol,), {"bounds": connections})


class BoundedProtocol(H11Protocol):
    """One connection; see the module's text."""

    bounds: Connections  # set by `bounded_protocol`

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._address: str | None = None  # where it is counted
        self._lingers = False
        self._since_s = self.loop.time()  # when the head, or the period of progress, began
        self._n_bytes = 0  # received in this period
        self._n_unsent: int | None = None  # while the client fetches nothing
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, or refuse it at once."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if not self.bounds.take(address):
            self.bounds.report_refused(self.loop.time())
            self._turn_away(503, "busy", "this service has too many connections: try again later")
            return
        self._address = address
        self._look = self.loop.call_later(CHECK_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give its place back."""
        if self._look is not None:
            self._look.cancel()
        if self._address is not None:
            self.bounds.give_back(self._address)
            self._address = None
        if self._lingers:
            self.bounds.n_lingering -= 1
            self._lingers = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; those of a refused connection are thrown away."""
        if self._lingers or self.transport.is_closing():
            return
        self._n_bytes += len(data)
        super().data_received(data)

    def eof_received(self) -> None:
        """The client sends no more; a refused one has its answer then."""
        if self._lingers:
            self.transport.close()

    def on_response_complete(self) -> None:
        """An answer is out: the time for the next head begins."""
        self._since_s, self._n_unsent = self.loop.time(), None
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """The answer to what is not HTTP, in the one shape of errors."""
        if self._leave_request():
            self._turn_away(400, "malformed_request", "this is not a request of HTTP/1.1")

    def _check(self) -> None:
        """Look whether it is within its times; once a second."""
        if self.transport.is_closing():
            return
        self._look = self.loop.call_later(CHECK_S, self._check)
        now_s = self.loop.time()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self._check_head(now_s)
        elif self.flow.write_paused:
            self._check_fetching(now_s)
        elif cycle.more_body and not self.flow.read_paused and not cycle.waiting_for_100_continue:
            self._check_body(now_s)
        else:
            self._begin_period(now_s)

    def _check_head(self, now_s: float) -> None:
        if now_s - self._since_s < self.bounds.head_s:
            return
        received, _ = self.conn.trailing_data
        if received:
            self._turn_away(408, "request_timeout", f"the head took longer than {self.bounds.head_s:g} s")
        else:
            self.transport.close()

    def _check_body(self, now_s: float) -> None:
        if now_s - self._since_s < self.bounds.body_s:
            return
        if self._n_bytes >= LEAST_BODY_BYTES:
            self._begin_period(now_s)
            return
        if self._leave_request():
            message = f"less than {LEAST_BODY_BYTES} bytes of the body came in {self.bounds.body_s:g} s"
            self._turn_away(408, "request_timeout", message)

    def _check_fetching(self, now_s: float) -> None:
        """End a connection whose client fetches nothing of its answer."""
        n_unsent = self.transport.get_write_buffer_size() + _n_queued(self.transport)
        if n_unsent != self._n_unsent:
            self._n_unsent = n_unsent
            self._begin_period(now_s)
        elif now_s - self._since_s >= self.bounds.body_s:
            self.transport.abort()

    def _leave_request(self) -> bool:
        """End the running request for the application, as if the client had left; False where it is half answered."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return True
        cycle.disconnected = True
        cycle.message_event.set()
        if cycle.response_started:
            self.transport.abort()
        return not cycle.response_started

    def _begin_period(self, now_s: float) -> None:
        self._since_s, self._n_bytes = now_s, 0

    def _turn_away(self, status: int, code: str, message: str) -> None:
        """Answer without a request, and close; what the client is still sending is thrown away for a moment.

        It would otherwise meet a reset connection instead of the answer.
        """
        self._unset_keepalive_if_required()
        body = error_body(code, message)
        retry = f"retry-after: {BUSY_RETRY_S}\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"{retry}x-content-type-options: nosniff\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        n_most = max(self.bounds.n_most // LINGERING_SHARE, LINGERING_SHARE)
        if self.bounds.n_lingering >= n_most or not self.transport.can_write_eof():
            _read_away(self.transport)
            self.transport.close()
            return
        self.bounds.n_lingering += 1
        self._lingers = True
        self.transport.write_eof()
        self.transport.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)


_REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


def _read_away(transport: asyncio.Transport) -> None:
    """Take what has arrived: closing with bytes unread would reset the connection, and lose the answer."""
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        os.read(connection.fileno(), 65_536)


def _n_queued(transport: asyncio.Transport) -> int:
    """Bytes that the kernel holds for the client; 0 where it does not say."""
    connection = transport.get_extra_info("socket")
    try:
        answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    except (OSError, AttributeError):
        return 0
    return cast(int, struct.unpack("i", answer)[0])
