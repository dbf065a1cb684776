"""A second process that counts the tokens of some of a large set's rows, beside the one that writes them.

Counting is most of the work of a large mix and holds the interpreter. The second process is given rows whenever it has
none. Where it cannot start, or ends, the process that writes counts them all; the sums are the same whoever counts.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa

from curator.mix.token_counter import BATCH_ROWS, TokenCounter
from curator.render import Renderer
from curator.store.store import Store

LEAST_BYTES = 16 << 20  # of a task set's file: for fewer rows a process takes longer to start than it saves

Rows = tuple[Sequence[str], Sequence[str]]  # origins and messages
Add = Callable[[Sequence[str], Sequence[str]], None]


@contextmanager
def counting_beside(counter: TokenCounter, store: Store, renderer_id: str, n_bytes: int) -> Iterator[Add]:
    """In place of `counter.add`, for the length of the block; all rows are counted at its end.

    `n_bytes` are those of the task set's file: the process is there for a large one, and where there are two cores.
    """
    if n_bytes < LEAST_BYTES or pa.cpu_count() < 2:
        yield counter.add
        return
    ours, theirs = Pipe()
    with ours:
        with theirs:
            process = _start(theirs.fileno())
        if process is None:
            yield counter.add
            return
        try:
            shared = _Shared(counter, ours)
            with suppress(OSError):  # it has ended already: `add` will see that
                ours.send((store.url(""), renderer_id, counter.mask_rule))
            yield shared.add
            shared.end()
        finally:
            process.kill()
            process.wait()


def _start(descriptor: int) -> "subprocess.Popen[bytes] | None":
    code = f"import {__name__} as beside; beside.serve({descriptor})"
    none = subprocess.DEVNULL  # also for errors: a traceback may quote a row
    # It imports from where this process does: `-c` alone would from the folder that it is run in, perhaps a stranger's.
    path = os.pathsep.join(item or str(Path.cwd()) for item in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    try:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdin=none, stdout=none, stderr=none, pass_fds=[descriptor], env=environment
        )
    except OSError:
        return None


class _Shared:
    """Rows go to the other process once it has answered for the last ones, and are counted here until then."""

    def __init__(self, counter: TokenCounter, connection: Connection) -> None:
        self._counter, self._connection = counter, connection
        self._given: Rows | None = ((), ())  # its first answer says that it has started; None once it has ended

    def add(self, origins: Sequence[str], messages: Sequence[str]) -> None:
        """Give the rows away, or count them: a batch at a time, for the other process may take the rest meanwhile."""
        for start in range(0, len(messages), BATCH_ROWS):
            if self._took(origins[start:], messages[start:]):
                return
            end = start + BATCH_ROWS
            self._counter.add(origins[start:end], messages[start:end])

    def _took(self, origins: Sequence[str], messages: Sequence[str]) -> bool:
        if self._given is not None and self._connection.poll():
            self._receive()
            with suppress(OSError):  # it has ended since
                if self._given is not None:
                    self._connection.send((origins, messages))
                    self._given = origins, messages
                    return True
        return False

    def end(self) -> None:
        """Count what is left, or wait for it."""
        if self._given is not None and self._given[0]:
            self._receive()

    def _receive(self) -> None:
        assert self._given is not None
        try:
            self._counter.add_sums(self._connection.recv())
            self._given = (), ()
        except (EOFError, OSError):
            self._counter.add(*self._given)
            self._given = None


def serve(descriptor: int) -> None:
    """Count rows that come from a descriptor until it is closed; the other process's part."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with Connection(descriptor) as connection, suppress(EOFError, OSError):
        url, renderer_id, mask_rule = connection.recv()
        renderer = Renderer.from_store(Store(url), renderer_id)
        rows: Rows = (), ()
        while True:
            counter = TokenCounter(renderer, mask_rule)
            counter.add(*rows)
            connection.send(counter.sums)
            rows = connection.recv()
