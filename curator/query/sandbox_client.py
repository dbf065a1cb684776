"""Strangers' SQL in a process of its own: `Sandbox.run` has one forked per statement, which ends with its answer.

The process has limits of memory, processor time and files from the kernel, reads only the parts that manifests
list, writes nothing, and is killed when it overruns. The one it is forked from has the views loaded and sees no
statement (curator.query.fork_server). curator.query.sandbox_process sets those limits, inside the process; what a
statement may say is in curator.query.guard.
"""

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal

from curator.errors import BadInputError, BallastError, MissingError
from curator.query.fork_server import Child, ForkServer
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
    """Runs statements over one local store, or a local copy; thread-safe. Close it to end the process it forks from.

    `store_path` gives the store's folder, requested before each statement.
    """

    def __init__(self, store_path: Callable[[], str], limits: SqlLimits) -> None:
        self.limits = limits
        self._store_path = store_path
        self._server = ForkServer("curator.query.sandbox_process")

    def close(self) -> None:
        """End the process that statements are forked from; a later statement starts another."""
        self._server.close()

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
        store = self._store_path()
        job = {
            "store": store,
            "statement": statement,
            "query": query,
            "params": dict(params or {}),
            "format": result_format,
            "limits": {**asdict(self.limits), "max_rows": rows},
        }
        child = self._server.fork(store)
        try:
            return _answer(child, json.dumps(job).encode() + b"\n", self.limits)
        finally:
            child.end()


def _answer(child: Child, job: bytes, limits: SqlLimits) -> SqlAnswer:
    timer = threading.Timer(limits.timeout_s + KILL_AFTER_S + LOAD_S, child.kill)
    timer.start()
    try:
        with suppress(BrokenPipeError):
            child.stdin.write(job)
            child.stdin.close()
        line = child.stdout.readline(HEAD_BYTES)
        if line == b"ready\n":  # views are loaded: the statement's own time begins
            timer.cancel()
            timer = threading.Timer(limits.timeout_s + KILL_AFTER_S, child.kill)
            timer.start()
            line = child.stdout.readline(HEAD_BYTES)
        return _read_answer(line, child.stdout, limits)
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
