"""`python -m api`: serve a store's mixes over HTTP."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence

from api.settings import Settings, flag_name, load_settings, variable_name
from curator.errors import BadInputError, BallastError, MissingDependencyError
from curator.progress import say

DESCRIPTION = """\
Serves a store over HTTP: send fine-tuning data and a recipe to POST /v1/mixes, get back a training mix with safe
rows interleaved, and a manifest of what went in. Needs no GPU and loads no model."""

EPILOG = """\
examples:
  python -m api --store ./store
  curl -F file=@task.jsonl -F 'recipe={"corpus": "chats"}' http://127.0.0.1:8765/v1/mixes
  curl http://127.0.0.1:8765/v1/mixes/MIX_ID/data?format=openai

/docs lists the endpoints, /openapi.json describes them. A flag overrides its environment variable.
There are no keys yet: whoever reaches the port can read and delete every mix, so keep it on a trusted network.
Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 bad settings, no store, or a port in use (one line says why)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    flags = vars(_parser().parse_args(argv))
    try:
        settings = load_settings(os.environ, flags)
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
    for name, field in Settings.model_fields.items():
        shown = "none" if field.default is None else field.default
        text = f"{field.description} (${variable_name(name)}; default {shown})"
        parser.add_argument(flag_name(name), default=None, metavar="VALUE", help=text)
    return parser


def _serve(settings: Settings) -> int:
    from curator.store import Store

    os.environ.setdefault("BALLAST_PROGRESS", "0")  # a build's progress bar has no place in a server's log
    Store(settings.store).open(create=False)
    with _listen(settings) as listener:  # before the slow imports: a port in use is told at once
        _run(settings, listener)
    return 0


def _run(settings: Settings, listener: socket.socket) -> None:
    try:
        import uvicorn

        from api.app import create_app
        from api.logs import set_up_logging
    except ImportError as error:
        raise MissingDependencyError(f"{error.name} is absent: pip install 'ballast[api]'") from error
    set_up_logging(settings.log_level)
    config = uvicorn.Config(
        create_app(settings),
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
    uvicorn.Server(config).run(sockets=[listener])
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
        reason = error.strerror or str(error)
        raise BadInputError(f"cannot listen on {settings.host}:{settings.port}: {reason.lower()}") from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
