"""Command line of the service: `python -m api` serves a store's mixes over HTTP, `keys` and `worker` beside it.

Nothing heavier than the settings is imported before the arguments are read, so that `--help` is quick and an absent
package is named in one line with the extra that installs it.
"""

import argparse
import errno
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curator.console import CommandParser, product_version, report_error, shorten_help
from curator.errors import BadInputError, BallastError, MissingDependencyError, MissingError

if TYPE_CHECKING:
    from api.settings import Settings
    from curator.store.store import Store

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

/docs lists the endpoints, /openapi.json describes them. A flag overrides its environment variable, which overrides
the file of --config. `python -m api worker` does the jobs that the service queues. `python -m api keys create` makes
API keys, which keep tenants apart. Without any key the service is open to everyone who can reach it: it then listens on
loopback only, unless --open says that the network is a trusted network.
Needs the extra `api`: pip install 'ballast-mix[api]'.
Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 bad settings, no store, or a port in use (one line says why)."""


# What most services need; `--help-all` has the rest, and docs/service.md says more of each.
_SHOWN = (
    "--store", "--host", "--port", "--config", "--demo", "--open", "--policy", "--temp-dir", "--log-level", "--version",
)  # fmt: skip

_METAVARS = {"int": "N", "float": "X", "str": "FILE"}
_NAMED = {
    "store": "DIR", "temp_dir": "DIR", "reports": "DIR", "host": "ADDRESS", "port": "PORT", "root_path": "PATH",
    "job_queue": "ADDRESS", "allowed_hosts": "NAMES", "openai_upstream": "URL",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.umask(0o077)  # keys, mixes, uploads and jobs are nobody else's on this machine
    try:
        if arguments[:1] == ["keys"]:
            from api.tenancy.keys import run_keys

            return run_keys(arguments[1:])
        if arguments[:1] == ["worker"]:
            from api.jobs.command import run_worker
            from api.processes.mix_jobs import BoundedMix

            mixes = BoundedMix()
            try:
                return run_worker(arguments[1:], mixes, mixes.builders.warm)
            finally:
                mixes.builders.close()
        return _serve_store(arguments)
    except BallastError as error:
        report_error(error, as_json=False)
        return 2
    except KeyboardInterrupt:  # Ctrl-C before the server runs
        return 0


def keys(argv: Sequence[str]) -> int:
    """`ballast keys`."""
    return main(["keys", *argv])


def worker(argv: Sequence[str]) -> int:
    """`ballast worker`."""
    return main(["worker", *argv])


def _serve_store(arguments: list[str]) -> int:
    try:
        return _serve(_demo(_settings(arguments)))
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{error.name} is absent: pip install 'ballast-mix[api]'") from error


def _settings(arguments: list[str]) -> "Settings":
    from pydantic_settings import CliSettingsSource

    from api.settings import Settings, load_settings

    parser = CommandParser(
        prog="python -m api",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ballast {product_version()}")
    source = CliSettingsSource[Settings](Settings, root_parser=parser, parse_args_method=CommandParser.parse_args)
    _write_for_people(parser)
    shorten_help(parser, _SHOWN)
    return load_settings(source(args=arguments)())


def _write_for_people(parser: argparse.ArgumentParser) -> None:
    """Words for the values and defaults of options: pydantic-settings writes names of Python types, and `null`."""
    for action in parser._actions:
        if action.metavar in _METAVARS:
            of_kind = "SECONDS" if action.dest.endswith("_s") else _METAVARS[str(action.metavar)]
            action.metavar = _NAMED.get(action.dest, of_kind)
        text, without = action.help or "", ""
        if action.nargs != 0 and "default" not in text.replace("(default:", ""):
            without = " (default: none)"
        text = text.replace(" (default: null)", without).replace(" (default: False)", "").replace(" (default: )", "")
        action.help = re.sub(r"\(default: (\d+)\.0\)", r"(default: \1)", text)


def _serve(settings: "Settings") -> int:
    from curator.store.store import Store

    os.environ.setdefault("BALLAST_PROGRESS", "0")  # a build's progress bar has no place in a server's log
    _check_open(settings, Store(settings.store).open(create=False))
    with _listen(settings) as listener:  # before the slow imports: a port in use is told at once
        from api.server.run import serve

        serve(settings, listener)
    return 0


def _demo(settings: "Settings") -> "Settings":
    """The demo's store in place of the configured one; raises MissingError before `make demo` has run."""
    if not settings.demo:
        return settings
    if not (DEMO_STORE / "store.json").exists():
        raise MissingError(f"there is no {DEMO_STORE}: `make demo` writes it")
    return settings.model_copy(update={"store": str(DEMO_STORE)})


def _check_open(settings: "Settings", store: "Store") -> None:
    """Raises BadInputError rather than serve everybody on the network by oversight."""
    from api.tenancy.auth import is_loopback
    from api.tenancy.keys import any_keys

    if not settings.open and not is_loopback(settings.host) and not any_keys(store):
        raise BadInputError(
            f"the store has no API key and {settings.host} is reached by others: make one "
            "(`python -m api keys create`), or say --open when the network is trusted"
        )


def _listen(settings: "Settings") -> socket.socket:
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
