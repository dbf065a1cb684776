"""`python -m api`: serve a store's mixes over HTTP.

uvicorn's server, with a service that knows at once that it is to stop.

uvicorn tells the application (the end of its lifespan) only after the last request has been answered: too late for
/readyz, and for requests that wait for an event.
"""

import argparse
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from api.service import Service
from api.settings import (
    CONFIG_VARIABLE,
    Settings,
    flag_name,
    load_settings,
    read_settings_file,
    variable_name,
)
from curator.console import product_version, say
from curator.errors import (
    BadInputError,
    BallastError,
    MissingDependencyError,
    MissingError,
)

if TYPE_CHECKING:
    from curator.store.store import Store


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

    async def on_tick(self, counter: int) -> bool:
        """Whether the loop is to end, as asked ten times a second."""
        asked = await super().on_tick(counter)
        return asked and time.monotonic() >= self._until_s


DEMO_STORE = Path("demo/store")
DESCRIPTION = """\
Serves a store over HTTP: send fine-tuning data and a recipe to POST /v1/mixes, get back a training mix with safe
rows interleaved, and a manifest of what went in. Needs no GPU and loads no model."""

EPILOG = """\
examples:
  python -m api --store ./store
  python -m api --demo
  curl -F file=@task.jsonl -F 'recipe={"corpus": "chats"}' http://127.0.0.1:8765/v1/mixes
  curl http://127.0.0.1:8765/v1/mixes/MIX_ID/data?format=openai

/docs lists the endpoints, /openapi.json describes them. A flag overrides its environment
variable, and that the file of --config.
`python -m api worker` does the jobs that the service queues. `python -m api keys create` makes API keys, one tenant's
mixes apart from another's. Without any key the service is open to whoever reaches it: it then listens on loopback
alone, unless --open says that the network is a trusted network.
Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 bad settings, no store, or a port in use (one line says why)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["keys"]:
            from api.keys import run_keys

            return run_keys(arguments[1:])
        if arguments[:1] == ["worker"]:
            from api.jobs.command import run_worker

            return run_worker(arguments[1:])
        flags = vars(_parser().parse_args(arguments))
        config = flags.pop("config")
        settings = _demo(load_settings(os.environ, flags, read_settings_file(config) if config else None))
        return _serve(settings)
    except BallastError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2
    except KeyboardInterrupt:  # Ctrl-C before the server runs
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m api",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ballast {product_version()}")
    parser.add_argument(
        "--config",
        default=os.environ.get(CONFIG_VARIABLE),
        metavar="FILE",
        help=f"YAML or JSON file of settings by their names, such as max_builds (${CONFIG_VARIABLE})",
    )
    for name, field in Settings.model_fields.items():
        shown = "none" if field.default is None else field.default
        text = f"{field.description} (${variable_name(name)}; default {shown})"
        if field.annotation is bool:
            parser.add_argument(flag_name(name), default=None, action="store_true", help=text)
        else:
            parser.add_argument(flag_name(name), default=None, metavar="VALUE", help=text)
    return parser


def _serve(settings: Settings) -> int:
    from curator.store.store import Store

    os.environ.setdefault("BALLAST_PROGRESS", "0")  # a build's progress bar has no place in a server's log
    _check_open(settings, Store(settings.store).open(create=False))
    with _listen(settings) as listener:  # before the slow imports: a port in use is reported at once
        _run(settings, listener)
    return 0


def _demo(settings: Settings) -> Settings:
    """The demo's store in place of the configured one; raises MissingError before `make demo` has run."""
    if not settings.demo:
        return settings
    if not (DEMO_STORE / "store.json").exists():
        raise MissingError(f"there is no {DEMO_STORE}: `make demo` writes it")
    return settings.model_copy(update={"store": str(DEMO_STORE)})


def _check_open(settings: Settings, store: "Store") -> None:
    """Raises BadInputError rather than serve everybody on the network by oversight."""
    from api.auth import is_loopback
    from api.keys import any_keys

    if not settings.open and not is_loopback(settings.host) and not any_keys(store):
        raise BadInputError(
            f"the store has no API key and {settings.host} is reached by others: make one "
            "(`python -m api keys create`), or say --open when the network is trusted"
        )


def _run(settings: Settings, listener: socket.socket) -> None:
    try:
        import uvicorn

        from api.app import create_app
        from api.telemetry import set_up_logging
    except ImportError as error:
        raise MissingDependencyError(f"{error.name} is absent: pip install 'ballast[api]'") from error
    set_up_logging(settings.log_level)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    say(f"serving {settings.store} at http://{address}:{port} (Ctrl-C stops)")
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn repeats the signal once the running requests are done
        signal.signal(number, lambda *_: None)
    Server(config, app.state.service).run(sockets=[listener])
    say("stopped")


def _listen(settings: Settings) -> socket.socket:
    """The bound socket; raises BadInputError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        reason, remedy = error.strerror or str(error), "--host names an address of this machine, --port a free port"
        if error.errno == errno.EADDRINUSE:
            remedy = "stop what listens there, or give another --port (0 takes a free one)"
        raise BadInputError(f"cannot listen on {settings.host}:{settings.port}: {reason.lower()}; {remedy}") from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
