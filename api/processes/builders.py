"""Processes beside the service that read strangers' data and build mixes, within limits of memory and time.

A worker does one piece of work at a time, keeps what it has loaded for the next, and is replaced when it overran a
limit or has done many. Work is a function of a module with arguments and results that can be pickled. Errors of the
product come back as they were raised. Only the process that started a worker ends it, and the worker ends with that
process: a signal to all processes at once, as a service manager sends it, does not break off the work.
"""

import atexit
import contextlib
import errno
import gc
import logging
import math
import multiprocessing
import os
import resource
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

from api.telemetry import log_event
from curator.errors import BadInputError, BallastError, is_out_of_service
from curator.store.scratch import Scratch, sweep_folder
from curator.store.store import Store

R = TypeVar("R")
Watch = Callable[[Any], None]
MAX_PIECES = 5_000  # of work of one process
GC_OBJECTS = 50_000  # between collections: rows are many objects without cycles
SHORT_PLACES = ("/tmp", "/var/tmp")
EXIT_S = 1.0  # for the exit code of a process that has closed its end
WATCH_S = 1.0  # between two calls of `watch` while the work reports nothing
_PRELOADED = ["curator.corpus.task_set", "curator.mix.build"]


class WorkStoppedError(BadInputError):
    """Reading or building ran past its limit of time or memory."""

    code = "work_stopped"


@dataclass(frozen=True)
class WorkLimits:
    """Bounds of one piece of work: seconds by the clock, and bytes beyond those that the process has already."""

    timeout_s: float
    memory_bytes: int


NO_THREAD = "can't start new thread"  # CPython's words, whose cause it does not say
NO_LIBRARY = ("cannot map zero-fill pages", "failed to map segment from shared object")  # the loader's, of no memory


@dataclass(eq=False)
class _Worker:
    process: ForkServerProcess
    connection: Connection
    n_pieces: int = 0

    def accepts(self, work: tuple[Any, ...]) -> bool:
        """Send it work; False where it died while it waited for some."""
        try:
            self.connection.send(work)
        except OSError:
            if self.n_pieces == 0:
                raise self._died() from None
            return False
        return True

    def receive(self, timeout_s: float) -> tuple[bool, Any] | None:
        """Whether it is a report, and what it is; None when nothing came in time."""
        try:
            return self.connection.recv() if self.connection.poll(timeout_s) else None
        except (EOFError, OSError):
            raise self._died() from None

    def _died(self) -> WorkStoppedError:
        self.process.join(EXIT_S)
        log_event(logging.WARNING, "a worker process ended", exit_code=self.process.exitcode)
        return _stopped("needs more memory or processor time than it gets")

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


@dataclass
class Builders:
    """Runs work in processes, as many at once as callers need; thread-safe. Close it to end them."""

    _idle: list[_Worker] = field(default_factory=list)
    _all: set[_Worker] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def __post_init__(self) -> None:
        atexit.register(self.close)  # before multiprocessing waits for its processes

    def run(self, limits: WorkLimits, function: Callable[..., R], *arguments: Any, watch: Watch | None = None) -> R:
        """What the function returns; blocks.

        With `watch` the function gets one argument more, a callable that sends a value to `watch` here; `watch` is
        also called with None once a second, and what it raises ends the work. Raises what the function raises of the
        product's own errors, and WorkStoppedError past a limit.
        """
        worker = self._take()
        try:
            while not worker.accepts((limits, function, arguments, watch is not None)):
                self._end(worker)
                worker = self._take()
            answer, error, number = _answer(worker, limits, watch)
        except BaseException:
            self._end(worker)
            raise
        self._put(worker)
        if error is not None:
            raise error from (OSError(number, "in the worker") if number else None)
        result: R = answer
        return result

    def warm(self) -> None:
        """Start a process ahead of the first work."""
        self._put(self._take())

    def close(self) -> None:
        """End all processes; work that is not done ends with WorkStoppedError."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.process.kill()
            idle, self._idle = self._idle, []
        for worker in idle:
            self._end(worker)

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                if self._closed:
                    raise _stopped("came when the service was ending")
                if not self._idle:
                    worker = _start()
                    self._all.add(worker)
                    return worker
                worker = self._idle.pop()
            if worker.process.is_alive():
                return worker
            self._end(worker)

    def _put(self, worker: _Worker) -> None:
        worker.n_pieces += 1
        with self._lock:
            if not self._closed and worker.n_pieces < MAX_PIECES:
                self._idle.append(worker)
                return
        self._end(worker)

    def _end(self, worker: _Worker) -> None:
        worker.end()
        with self._lock:
            self._all.discard(worker)


def _answer(worker: _Worker, limits: WorkLimits, watch: Watch | None) -> Any:
    """What the worker sends at its end; its reports on the way go to `watch`."""
    ends_s = time.monotonic() + limits.timeout_s
    while True:
        left_s = ends_s - time.monotonic()
        received = worker.receive(max(0.0, left_s if watch is None else min(left_s, WATCH_S)))
        if received is not None and not received[0]:
            return received[1]
        if left_s <= 0:
            raise _stopped(f"took more than {limits.timeout_s:g} seconds")
        if watch is not None:
            watch(None if received is None else received[1])


def _stopped(reason: str) -> WorkStoppedError:
    return WorkStoppedError(f"the data set {reason}: split it, or ask for less")


@cache
def _socket_folder() -> Scratch:
    """Where the socket lies over which multiprocessing starts processes, until this process ends.

    Its own folder would stay after a kill, and under a long `temp_dir` the path would be longer than one of a socket
    may be (108 bytes).
    """
    place = next((place for place in SHORT_PLACES if os.access(place, os.W_OK | os.X_OK)), tempfile.gettempdir())
    sweep_folder(Path(place))
    folder = Scratch("job", place)
    atexit.register(folder.close)
    multiprocessing.current_process()._config["tempdir"] = str(folder.path)  # type: ignore[attr-defined]
    return folder


@cache
def kept_store(root: str) -> Store:
    """A store that stays open in the process that does the work."""
    return Store(root)


def _start() -> _Worker:
    _socket_folder()
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection) -> None:
    """Do work until the service ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the service, which ends its workers itself
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_peer, args=(connection.fileno(),), daemon=True).start()
    gc.freeze()  # what is loaded stays: no collection walks it again, nor copies its pages
    gc.set_threshold(GC_OBJECTS)
    while True:
        try:
            limits, function, arguments, reports = connection.recv()
        except (EOFError, OSError):
            return
        _limit(limits)
        report = (lambda value: connection.send((True, value)),) if reports else ()
        answer: Any = None
        failure: BaseException | None = None
        try:
            answer = function(*arguments, *report)
        except MemoryError:
            return  # the process is not to be used again
        except Exception as error:
            if _is_memory(error):
                return
            failure = error
        connection.send((False, (answer, _sendable(failure), _number_of(failure))))


def _end_with_peer(descriptor: int) -> None:
    """End this process, whatever it is doing, once the process that gave the work has ended."""
    peer = select.poll()
    peer.register(descriptor, select.POLLRDHUP)
    peer.poll()
    os._exit(1)


def _limit(limits: WorkLimits) -> None:
    """Private memory and processor time of the next piece of work; a core dump would hold a user's rows."""
    data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    spent = resource.getrusage(resource.RUSAGE_SELF)
    n_threads = 8  # seconds of processors may be more than those of the clock
    cpu_s = math.ceil(spent.ru_utime + spent.ru_stime + n_threads * limits.timeout_s)
    for what, bound in (
        (resource.RLIMIT_DATA, data + limits.memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        with contextlib.suppress(ValueError, OSError):  # the administrator's own limit is lower
            resource.setrlimit(what, (bound, hard))


def _is_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError) and str(error) == NO_THREAD:  # there was no memory for its stack
            return True
        if isinstance(error, ImportError) and str(error).endswith(NO_LIBRARY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sendable(error: BaseException | None) -> BaseException | None:
    """The error itself where it is one of ours; otherwise its type alone, for its text may quote a row."""
    if error is None or isinstance(error, BallastError):
        return error
    return OSError(error.errno, "in the worker") if isinstance(error, OSError) else RuntimeError(type(error).__name__)


def _number_of(failure: BaseException | None) -> int | None:
    """The system's number of an error's cause, such as a full disk, which is not pickled with it."""
    error = failure
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return errno.EMFILE if is_out_of_service(failure) else None  # told by a library's text, which stays here
