"""Processes for statements, forked from one that has the libraries and the store's views loaded.

To start Python with DuckDB and to make the views costs twenty times what a small statement costs. The parent does it
once, again when a manifest changed, and never sees a statement: each runs in a child that is forked for it alone and
ends with it, so nothing of a statement reaches the next one. Forking is safe only with a single thread: DuckDB, Arrow
and NumPy are told to start none, and a parent that finds others forks children without the views, which load them
themselves.
"""

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from curator.errors import BallastError

FORK_S = 20.0  # for a cold start on a busy machine
MAX_PATH_BYTES = 4096
# Each of these libraries starts threads otherwise, as soon as it is loaded.
_SINGLE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


@dataclass(frozen=True)
class Child:
    """One forked process, as the service holds it: `pidfd` refers to it even after its number is used again."""

    pidfd: int
    stdin: IO[bytes]
    stdout: IO[bytes]

    def kill(self) -> None:
        """Kill it; one that has ended is left alone."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, wait until it is gone, and close what belongs to it."""
        self.kill()
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.poll()
        os.close(self.pidfd)
        for pipe in (self.stdin, self.stdout):
            with suppress(OSError):
                pipe.close()


class ForkServer:
    """The service's side: starts `python -m module` when first needed and asks it for children. Thread-safe."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def fork(self, store: str) -> Child:
        """A child with the views of the store in this folder; raises BallastError when none can be had."""
        with self._lock:
            for _ in range(2):  # the parent may have been killed since
                try:
                    return self._ask(store)
                except (OSError, EOFError):
                    self._stop()
        raise BallastError("no process for statements could be started")

    def close(self) -> None:
        """End the parent; the next `fork` starts another."""
        with self._lock:
            self._stop()

    def _ask(self, store: str) -> Child:
        connection = self._socket or self._start()
        stdin_read, stdin_write = os.pipe()
        stdout_read, stdout_write = os.pipe()
        pidfds: list[int] = []
        try:
            socket.send_fds(connection, [store.encode()], [stdin_read, stdout_write])
            told, pidfds, _, _ = socket.recv_fds(connection, 1, 1)
            if not told or not pidfds:
                raise EOFError
        except BaseException:
            os.close(stdin_write)
            os.close(stdout_read)
            raise
        finally:
            os.close(stdin_read)
            os.close(stdout_write)
        return Child(pidfds[0], os.fdopen(stdin_write, "wb"), os.fdopen(stdout_read, "rb"))

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(FORK_S)
        # No variable of the service's own environment: it may hold secrets.
        path = os.pathsep.join(item or str(Path.cwd()) for item in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": path, "LC_ALL": "C.UTF-8", **_SINGLE},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C on the service is not for the statement
            )
        self._socket = ours
        return ours

    def _stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket = self._process = None


def serve(descriptor: int, prepare: Callable[[str], None], work: Callable[[], int]) -> None:
    """The parent's side: for each message, `prepare` the store that it names and fork a child that runs `work`.

    The child has the pipes of the message as stdin and stdout, and no other descriptor of the parent's own. Returns
    when the service closes its end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for: the service holds each one's pidfd
    gc.freeze()  # what is loaded by now is never collected, nor copied by a child's collection
    with socket.socket(fileno=descriptor) as connection:
        while True:
            store, pipes, _, _ = socket.recv_fds(connection, MAX_PATH_BYTES, 2)
            if not store:
                return
            prepare(store.decode())
            pid = os.fork()
            if pid == 0:
                connection.close()
                _run(pipes, work)
            for pipe in pipes:
                os.close(pipe)
            pidfd = os.pidfd_open(pid)
            try:
                socket.send_fds(connection, [b"1"], [pidfd])
            finally:
                os.close(pidfd)


def _run(pipes: list[int], work: Callable[[], int]) -> None:
    """A child's whole life; does not return."""
    code = 1
    try:
        for place, pipe in enumerate(pipes):
            os.dup2(pipe, place)
            os.close(pipe)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = work()
    finally:
        os._exit(code)  # nothing of the parent's is closed or flushed twice


def is_single_threaded() -> bool:
    """Whether this process has one thread alone."""
    return len(list(Path("/proc/self/task").iterdir())) == 1
