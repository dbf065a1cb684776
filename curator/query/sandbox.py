"""Strangers' SQL in a process of its own: `Sandbox.run` starts one per statement, which ends with its answer.

The process has limits of memory, processor time and files from the kernel, reads only the parts that manifests
list, writes nothing, and is killed when it overruns. One spare process waits with its libraries loaded, so that a
statement does not pay for the start. curator.query.sandbox_process sets those limits, inside the process; what a
statement may say is in curator.query.guard.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from curator.errors import BadInputError, BallastError, MissingError
from sql import Value

ResultFormat = Literal["json", "csv", "arrow", "parquet"]
MIB = 2**20
KILL_AFTER_S = 3.0  # beyond the statement's own limit, for loading views and writing the answer
LOAD_S = 20.0  # for a cold start on a busy machine
HEAD_BYTES = 64 * 1024
GROWTH = 8  # an answer as text is at most this many times its size in memory


@dataclass(frozen=True)
class SqlLimits:
    """Bounds of one statement; `max_bytes` counts the answer's values in memory."""

    timeout_s: float = 10.0
    memory_bytes: int = 512 * MIB
    max_rows: int = 10_000
    max_bytes: int = 16 * MIB


@dataclass(frozen=True)
class SqlAnswer:
    """A statement's answer in the requested format; `truncated` says that a cap cut it."""

    data: bytes
    n_rows: int
    truncated: bool


class StatementStoppedError(BadInputError):
    """A statement ran past its limit of time, processor time or memory."""

    code = "statement_stopped"


class Sandbox:
    """Runs statements over one local store, or a local copy; thread-safe. Close it to end the spare process.

    `store_path` gives the store's folder, requested before each statement.
    """

    def __init__(self, store_path: Callable[[], str], limits: SqlLimits) -> None:
        self.limits = limits
        self._store_path = store_path
        self._spare: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End the spare process; later statements start one of their own."""
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, None
        if spare is not None:
            _end(spare)

    def run(
        self,
        statement: str | None = None,
        *,
        query: str | None = None,
        params: Mapping[str, Value] | None = None,
        result_format: ResultFormat = "json",
        max_rows: int | None = None,
    ) -> SqlAnswer:
        """The answer to one statement, or to a named query with parameters.

        Raises BadInputError for what is refused or fails, MissingError for an unknown query, StatementStoppedError
        past a limit.
        """
        rows = min(self.limits.max_rows, max_rows or self.limits.max_rows)
        job = {
            "store": self._store_path(),
            "statement": statement,
            "query": query,
            "params": dict(params or {}),
            "format": result_format,
            "limits": {**asdict(self.limits), "max_rows": rows},
        }
        process = self._take()
        try:
            return _answer(process, json.dumps(job).encode() + b"\n", self.limits)
        finally:
            _end(process)

    def _take(self) -> "subprocess.Popen[bytes]":
        """A process that waits for work; the next spare is started meanwhile."""
        with self._lock:
            process, self._spare = self._spare, None
            if process is None or process.poll() is not None:
                process = _start()
            if not self._closed:
                self._spare = _start()
        return process


def _start() -> "subprocess.Popen[bytes]":
    # No variable of the service's own environment: it may hold secrets.
    environment = {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path), "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "curator.query.sandbox_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment,
        start_new_session=True,  # Ctrl-C on the service is not for the statement
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()


def _answer(process: "subprocess.Popen[bytes]", job: bytes, limits: SqlLimits) -> SqlAnswer:
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(limits.timeout_s + KILL_AFTER_S + LOAD_S, process.kill)
    timer.start()
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(job)
            process.stdin.close()
        line = process.stdout.readline(HEAD_BYTES)
        if line == b"ready\n":  # views are loaded: the statement's own time begins
            timer.cancel()
            timer = threading.Timer(limits.timeout_s + KILL_AFTER_S, process.kill)
            timer.start()
            line = process.stdout.readline(HEAD_BYTES)
        return _read_answer(line, process.stdout, limits)
    finally:
        timer.cancel()


def _read_answer(line: bytes, stream: IO[bytes], limits: SqlLimits) -> SqlAnswer:
    try:
        head: dict[str, Any] = json.loads(line)
        data = stream.read(limits.max_bytes * GROWTH + MIB)
    except ValueError as error:  # it was killed, by us or by the kernel
        raise _stopped() from error
    if head["ok"]:
        if len(data) != head["n_bytes"]:
            raise _stopped()
        return SqlAnswer(data, int(head["n_rows"]), bool(head["truncated"]))
    if head["kind"] == "not_found":
        raise MissingError(head["message"])
    if head["kind"] == "stopped":
        raise StatementStoppedError(head["message"])
    if head["kind"] == "bad_input":
        raise BadInputError(head["message"])
    raise BallastError(head["message"])


def _stopped() -> StatementStoppedError:
    return StatementStoppedError("the statement ran past its limits and was stopped: narrow it down")
