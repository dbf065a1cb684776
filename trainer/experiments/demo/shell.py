"""Runs the product's own commands the way a reader would type them, and shows each one."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from curator.client import Client
from curator.console import say
from curator.errors import BallastError

READY_TIMEOUT_S = 60.0
STOPPED = 130  # exit code of a command that Ctrl-C stopped


class DemoFailedError(BallastError):
    """A step of the demo did not do what it must."""

    code = "demo_failed"


def _argv(module: str, arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", module, *(str(item) for item in arguments)]


def show(module: str, arguments: Sequence[object]) -> None:
    """Print the command as a reader would type it."""
    say("  $ " + shlex.join(["python", "-m", module, *(str(item) for item in arguments)]))
    sys.stdout.flush()


def run(module: str, *arguments: object) -> None:
    """Run a command with its output on screen; raises DemoFailedError when it fails."""
    show(module, arguments)
    _finished(module, subprocess.Popen(_argv(module, arguments)))


def run_json(module: str, *arguments: object) -> Any:
    """Run a command with `--json` and return what it printed; its progress stays on screen."""
    show(module, [*arguments, "--json"])
    return json.loads(
        _finished(module, subprocess.Popen(_argv(module, [*arguments, "--json"]), stdout=subprocess.PIPE, text=True))
    )


def _finished(module: str, process: "subprocess.Popen[Any]") -> Any:
    """What the command printed into its pipe, if it has one; raises DemoFailedError when it failed.

    After Ctrl-C the command is waited for, however long it takes: it has the signal too, and trainings write a
    checkpoint then (`subprocess.run` would kill it a quarter of a second later).
    """
    interrupted = False
    while True:
        try:
            printed, _ = process.communicate()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted or process.returncode == STOPPED:  # where this process ignores the signal, the command did not
        raise KeyboardInterrupt
    if process.returncode:
        raise DemoFailedError(
            f"`python -m {module}` ended with exit code {process.returncode}; its message stands above"
        )
    return printed


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
    process = subprocess.Popen(_argv("api", arguments), env={**os.environ, "PYTHONUNBUFFERED": "1"})
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
