"""Runs the product's own commands the way a reader would type them, and shows each one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curator.client import Client
from curator.errors import BallastError
from trainer.plans.commands import Commands, show

READY_TIMEOUT_S = 60.0


class DemoFailedError(BallastError):
    """A step of the demo did not do what it must."""

    code = "demo_failed"


def run(module: str, *arguments: object) -> None:
    """Run a command with its output on screen; raises CommandError when it fails."""
    Commands().run(module, *arguments)


def run_json(module: str, *arguments: object) -> Any:
    """Run a command with `--json` and return what it printed; its progress stays on screen."""
    return Commands().run(module, *arguments, "--json")[0]


def free_port() -> int:
    """A loopback port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def service(store: object) -> Iterator[str]:
    """The HTTP service on a loopback port for the length of the block; yields its address."""
    port = free_port()
    arguments = ("--store", store, "--host", "127.0.0.1", "--port", port, "--log-level", "warning")
    show("api", arguments)
    process = subprocess.Popen(
        [sys.executable, "-m", "api", *map(str, arguments)], env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(url, process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoFailedError(f"the service ended at once with exit code {process.returncode}")
        try:
            with Client(url, retries=0) as client:
                client.health()
        except BallastError:
            time.sleep(0.2)
        else:
            return
    raise DemoFailedError(f"the service did not answer within {READY_TIMEOUT_S:.0f} s")
