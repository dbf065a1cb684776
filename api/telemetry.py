"""Logs and metrics of one process.

Logs are one JSON object a line on stderr, with request ids and without user text. The text of an exception may quote a
user's row, so only its type and the places it passed are written, and the text of the store's own errors, which name
files and hashes. Metrics are in Prometheus's format; their labels are route templates, methods and statuses, never a
tenant or an id.
"""

import contextlib
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from api.jobs.metrics import JobTimes
from api.settings import Settings
from curator.errors import StoreError

LOGGER = "ballast.api"
FOREIGN_LINES, FOREIGN_PERIOD_S = 10, 10.0  # lines of one other library in a period: a fault may repeat a million times
MAX_WAITING_LINES = 10_000  # for a reader of stderr that stands still; a line has a few hundred bytes
FLUSH_S = 2.0  # that a process which ends waits for such a reader
FIELDS = "fields"  # name of the extra attribute that carries an event's own fields
_PLAIN = frozenset({"asyncio", "python", "uvicorn.error"})  # whose messages hold nothing that a client sent
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

Place = AbstractAsyncContextManager[object]


class Metrics:
    """What is counted; each application has its own registry."""

    def __init__(self, settings: Settings, version: str) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ballast_requests", "requests answered", ("route", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "ballast_request_seconds",
            "seconds from a request to the end of its answer",
            ("route", "method"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.sent = Counter("ballast_sent_bytes", "bytes of bodies sent", ("route",), registry=self.registry)
        self.running = Gauge("ballast_requests_running", "requests being answered", registry=self.registry)
        self.mixes = Counter("ballast_mixes", "mixes requested", ("outcome",), registry=self.registry)
        self.statements = Counter("ballast_sql_statements", "SQL statements", ("outcome",), registry=self.registry)
        self.jobs = Counter("ballast_jobs", "jobs made", ("kind",), registry=self.registry)
        self.job_times = JobTimes(self.registry)  # of the service's own workers
        timed = {"builds": "mix or check of an upload", "statements": "SQL statement"}
        self.waits, self.works = (
            {
                name: Histogram(
                    f"ballast_{name[:-1]}_{suffix}",
                    f"seconds {text} of one {thing}, by class of tenants",
                    ("tier",),
                    buckets=_SECONDS,
                    registry=self.registry,
                )
                for name, thing in timed.items()
            }
            for suffix, text in (("wait_seconds", "of waiting for a place"), ("seconds", "in its place"))
        )
        ProcessCollector(registry=self.registry)
        info = Gauge("ballast_info", "version of the service", ("version",), registry=self.registry)
        info.labels(version).set(1)
        places = Gauge("ballast_build_places", "mixes built at the same time", registry=self.registry)
        places.set(settings.max_builds)

    def observe(self, route: str | None, method: str, status: int | None, n_bytes: int, seconds: float) -> None:
        """Count one request that has ended."""
        shown = route or "none"
        self.requests.labels(shown, method, str(status or 0)).inc()
        self.seconds.labels(shown, method).observe(seconds)
        self.sent.labels(shown).inc(n_bytes)

    @asynccontextmanager
    async def timed(self, what: Literal["builds", "statements"], tier: str, place: Place) -> AsyncIterator[None]:
        """Hold a place for the length of the block, and count the seconds of the wait and of the block."""
        asked_s = time.perf_counter()
        async with place:
            began_s = time.perf_counter()
            self.waits[what].labels(tier).observe(began_s - asked_s)
            try:
                yield
            finally:
                self.works[what].labels(tier).observe(time.perf_counter() - began_s)

    def text(self) -> bytes:
        """The exposition that Prometheus reads."""
        return generate_latest(self.registry)


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON: time, level, event and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without line feed."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage() if record.name == LOGGER else f"message of {record.name}",
        }
        if record.name != LOGGER:  # its arguments may hold a user's words
            document["text"] = str(record.msg).partition("\n")[0][:200] if record.name in _PLAIN else ""
            document["from"] = f"{_short(record.pathname)}:{record.lineno}"
        document.update(getattr(record, FIELDS, {}))
        if record.exc_info and record.exc_info[1] is not None:
            document.update(describe_error(record.exc_info[1]))
        return orjson.dumps(_encodable(document), default=str).decode()


def _encodable(value: Any) -> Any:
    """The value with every text fit for UTF-8: half a surrogate pair is written as an escape."""
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


class ForeignRate(logging.Filter):
    """Lets `FOREIGN_LINES` records of each other library through in a period; the next one says how many it kept."""

    def __init__(self) -> None:
        super().__init__()
        self._begun_s: dict[str, float] = {}
        self._n_records: dict[str, int] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.name == LOGGER:
            return True
        now_s = time.monotonic()
        with self._lock:
            n_before = self._n_records.get(record.name, 0)
            if now_s - self._begun_s.get(record.name, float("-inf")) >= FOREIGN_PERIOD_S:
                self._begun_s[record.name] = now_s
                if n_before > FOREIGN_LINES:
                    setattr(record, FIELDS, {"n_withheld": n_before - FOREIGN_LINES})
                n_before = 0
            self._n_records[record.name] = n_before + 1
        return n_before < FOREIGN_LINES


class StderrHandler(logging.Handler):
    """Lines for stderr, written by a thread of their own, so that a reader that stands still stops no request.

    While `MAX_WAITING_LINES` wait, further ones are left out; an event of their number comes before the next line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._descriptor = sys.stderr.fileno()
        self._waiting: deque[bytes] = deque()
        self._n_left_out = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line, or count it."""
        line = self._line(record)
        with self._changed:
            if len(self._waiting) >= MAX_WAITING_LINES:
                self._n_left_out += 1
                return
            if self._n_left_out:
                fields = {FIELDS: {"n_lines": self._n_left_out}}
                event = {"name": LOGGER, "levelname": "WARNING", "msg": "log lines left out", **fields}
                self._waiting.append(self._line(logging.makeLogRecord(event)))
                self._n_left_out = 0
            self._waiting.append(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, or the reader has stood still for `FLUSH_S`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, FLUSH_S)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode() + b"\n"

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                line = self._waiting[0]
            with contextlib.suppress(OSError):  # the reader has gone
                self._put(line)
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _put(self, line: bytes) -> None:
        """Write all of a line; not through sys.stderr, whose lock the interpreter needs at its end."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # a supervisor made it non-blocking, and it is full
                select.select([], [self._descriptor], [])


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception's type, its causes' types, and the places it passed (module file, line, function).

    Of the store's own errors also the reason: it says which file is not what its manifest says.
    """
    kinds: list[str] = []
    current: BaseException | None = error
    while current is not None and len(kinds) < 5:
        kinds.append(type(current).__name__)
        current = current.__cause__ or current.__context__
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    places = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    reason = {"reason": error.message} if isinstance(error, StoreError) else {}
    return {"error": kinds, **reason, "at": places}


def set_up_logging(level: str) -> None:
    """Send our log, and what libraries and the interpreter report, through the formatter, once a process."""
    handler = StderrHandler() if sys.stderr is not None else logging.NullHandler()  # `2>&-`
    handler.setFormatter(JsonFormatter())
    handler.addFilter(ForeignRate())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel("WARNING")
    logging.getLogger(LOGGER).setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    sys.unraisablehook = lambda found: _log_unraisable(found.exc_value)
    threading.excepthook = lambda found: _log_unraisable(found.exc_value)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, KeyboardInterrupt):
        log_event(logging.CRITICAL, "the process ends", error)


def _log_unraisable(error: BaseException | None) -> None:
    logging.getLogger("python").error("an error that nobody could handle", exc_info=error)


def log_event(level: int, event: str, error: BaseException | None = None, **fields: object) -> None:
    """Write one event with its fields."""
    logging.getLogger(LOGGER).log(level, event, extra={FIELDS: fields}, exc_info=error)


def _short(filename: str) -> str:
    return "/".join(filename.split("/")[-2:])


# What a request's own layers tell the one that logs it: who asks, how many rows came. The notes follow the request into
# the threads that work for it.
_NOTES: ContextVar[dict[str, Any] | None] = ContextVar("notes", default=None)


def note(**facts: Any) -> None:
    """Add facts to the notes of the request that is being answered; outside of one nothing happens."""
    notes = _NOTES.get()
    if notes is not None:
        notes.update(facts)


@contextmanager
def taking_notes() -> Iterator[dict[str, Any]]:
    """The notes of one request, for the length of the block."""
    notes: dict[str, Any] = {}
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
