"""Run the application under uvicorn, and tell the service as soon as it has to stop.

uvicorn ends the application's lifespan only after the last request has been answered. That is too late for /readyz,
which has to answer 503 at once, and for requests that wait for an event.
"""

import asyncio
import os
import signal
import socket
import ssl
import sys
import tempfile
import time
from functools import partial
from types import FrameType

import uvicorn

from api.app import create_app
from api.processes.workers import OwnWorkers
from api.server.connections import TlsListener, bounded_protocol, connection_bounds, raise_descriptor_limit
from api.service import Service
from api.settings import Settings
from api.telemetry import set_up_logging
from curator.console import say
from curator.errors import BadInputError

LISTEN_BACKLOG = 1024
SWITCH_S = 0.001  # a thread that wants the interpreter waits so long at most for one that works; Python's own is 5 ms


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve at a bound socket until a signal."""
    set_up_logging(settings.log_level)
    sys.setswitchinterval(SWITCH_S)  # the event loop wants it again after each system call, beside readers all the time
    check_tls(settings)
    if settings.temp_dir is not None:  # also for what libraries and processes of ours put aside
        tempfile.tempdir = os.environ["TMPDIR"] = settings.temp_dir
    app = create_app(settings)
    service: Service = app.state.service
    if settings.workers and service.queue is not None:
        service.workers = OwnWorkers(settings, service.board, service.metrics.job_times.observe)
        service.workers.wake()  # for what was queued before
    bounds = connection_bounds(settings, raise_descriptor_limit())
    config = uvicorn.Config(
        app,
        loop="asyncio",  # others accept connections past TlsListener
        http=bounded_protocol(bounds),
        backlog=1,  # connections accepted in one turn of the loop, so that those beyond the bounds are gone in the next
        ws="none",
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    scheme = "http" if settings.tls_cert is None else "https"
    say(f"serving {settings.store} at {scheme}://{address}:{port} (Ctrl-C stops)")
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn repeats the signal once the running requests are done
        signal.signal(number, lambda *_: None)
    Server(config, service).run(sockets=[listener if settings.tls_cert is None else TlsListener(listener, bounds)])
    say("stopped")


def check_tls(settings: Settings) -> None:
    """Raises BadInputError for a certificate and key that cannot be served, rather than fail at the first client."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        # With a password, even a wrong one, a locked key is refused; without one the console would be asked.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password="-")
    except OSError as error:  # SSLError is one
        reason = (error.reason or "not PEM") if isinstance(error, ssl.SSLError) else error.strerror
        raise BadInputError(
            f"no TLS with {settings.tls_cert} and {settings.tls_key}: {reason}; tls_cert is a PEM file with the chain, "
            "tls_key one with its private key, without a password"
        ) from error


class Server(uvicorn.Server):
    """Serves until a signal; a second one ends the delay of the first."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._until_s = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Tell the service, and take requests for `shutdown_delay_s` more."""
        now_s = time.monotonic()
        self._until_s = 0.0 if self._service.stopping else now_s + self._service.settings.shutdown_delay_s
        self._service.stopping = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the kernel's own line of connections is longer than what is accepted in one turn."""
        if self.config.ssl is not None:  # uvicorn has no setting for it; asyncio's own is a minute
            loop = asyncio.get_running_loop()
            timeout_s = self._service.settings.head_timeout_s
            loop.create_server = partial(loop.create_server, ssl_handshake_timeout=timeout_s)  # type: ignore[method-assign]
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(LISTEN_BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        """Whether the loop is to end; uvicorn asks ten times a second."""
        asked = await super().on_tick(counter)
        return asked and time.monotonic() >= self._until_s
