"""Processes beside the service that read strangers' data and build mixes, within limits of memory and time.

A worker does one piece of work at a time, keeps what it has loaded for the next, and is replaced when it overran a
limit or has done many. Work is a function of a module with arguments and results that can be pickled. Errors of the
product come back as they were raised.
"""

import contextlib
import errno
import gc
import logging
import math
import multiprocessing
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

from api.telemetry import log_event
from curator.errors import BadInputError, BallastError

R = TypeVar("R")
MAX_PIECES = 5_000  # of work of one process
GC_OBJECTS = 50_000  # between collections: rows are many objects without cycles
_PRELOADED = ["curator.corpus.task_set", "curator.mix.build"]


class WorkStoppedError(BadInputError):
    """Reading or building ran past its limit of time or memory."""

    code = "work_stopped"


@dataclass(frozen=True)
class WorkLimits:
    """Bounds of one piece of work: seconds by the clock, and bytes beyond those that the process has already."""

    timeout_s: float
    memory_bytes: int


@dataclass
class _Worker:
    process: ForkServerProcess
    connection: Connection
    n_pieces: int = 0

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


@dataclass
class Builders:
    """Runs work in processes, as many as are asked for at once; thread-safe. Close it to end them."""

    _idle: list[_Worker] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def run(self, limits: WorkLimits, function: Callable[..., R], *arguments: Any) -> R:
        """What the function returns; blocks.

        Raises what it raises of the product's own errors, and WorkStoppedError past a limit.
        """
        worker = self._take()
        try:
            worker.connection.send((limits, function, arguments))
            if not worker.connection.poll(limits.timeout_s):
                raise _stopped(f"took more than {limits.timeout_s:g} seconds")
            answer, error, number = worker.connection.recv()
        except (EOFError, OSError, WorkStoppedError) as failure:
            worker.end()
            if isinstance(failure, WorkStoppedError):
                raise
            log_event(logging.WARNING, "a worker process ended", exit_code=worker.process.exitcode)
            raise _stopped("needs more memory or processor time than it gets") from None
        except BaseException:
            worker.end()
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
        """End the processes that wait."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def _take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.process.is_alive():
                    return worker
                worker.end()
        return _start()

    def _put(self, worker: _Worker) -> None:
        worker.n_pieces += 1
        with self._lock:
            if not self._closed and worker.n_pieces < MAX_PIECES:
                self._idle.append(worker)
                return
        worker.end()


def _stopped(reason: str) -> WorkStoppedError:
    return WorkStoppedError(f"the data set {reason}: split it, or ask for less")


def _start() -> _Worker:
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection) -> None:
    """Do work until the service ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what is loaded stays: no collection walks it again, nor copies its pages
    gc.set_threshold(GC_OBJECTS)
    while True:
        try:
            limits, function, arguments = connection.recv()
        except (EOFError, OSError):
            return
        _limit(limits)
        answer: Any = None
        failure: BaseException | None = None
        try:
            answer = function(*arguments)
        except MemoryError:
            return  # the process is not to be used again
        except Exception as error:
            if _is_memory(error):
                return
            failure = error
        connection.send((answer, _sendable(failure), _number_of(failure)))


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
        error = error.__cause__ or error.__context__
    return False


def _sendable(error: BaseException | None) -> BaseException | None:
    """The error itself where it is one of ours; otherwise its type alone, for its text may quote a row."""
    if error is None or isinstance(error, BallastError):
        return error
    return OSError(error.errno, "in the worker") if isinstance(error, OSError) else RuntimeError(type(error).__name__)


def _number_of(error: BaseException | None) -> int | None:
    """The system's number of an error's cause, such as a full disk, which is not pickled with it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None
