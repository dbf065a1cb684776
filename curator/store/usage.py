"""Who used a store over the service, when, and how much: one event a line, in files that only grow.

`usage/YYYY-MM-DD/PROCESS.jsonl` belongs to one process, so that several write at once without a lock. In a local store
each event is one append, which a killed process cannot take back; in a bucket, whose files cannot grow, events are
written a few seconds later, as files of their own. Events name tenants, keys and ids and hold no user text.
"""

import heapq
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson

from curator.errors import StoreError
from curator.store.schema import USAGE
from curator.store.store import Store

FOLDER = "usage"
BUCKET_DELAY_S = 2.0  # between an event and its file in a bucket: what a killed process may lose
MAX_WAITING = 100_000  # events that wait for a bucket that is away
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Event = dict[str, Any]


@dataclass
class UsageLog:
    """The events of one store; thread-safe. Close it to write what waits."""

    store: Store
    _process: str = field(default_factory=lambda: secrets.token_hex(6))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _file: int | None = None
    _day: str = ""
    _last_us: int = 0
    _n_events: int = 0
    _n_files: int = 0
    _waiting: list[bytes] = field(default_factory=list)
    _timer: threading.Timer | None = None

    def add(self, tenant: str, action: str, **fields: Any) -> None:
        """Write one event; `fields` are columns of USAGE, those left out or None are null.

        Raises StoreError when it cannot be written.
        """
        with self._lock:
            self._last_us = max(self._last_us, time.time_ns() // 1_000)  # a clock that is set back reorders nothing
            self._n_events += 1
            at = _EPOCH + timedelta(microseconds=self._last_us)
            event = {
                "ended_at": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "event_id": f"{self._last_us:013x}{self._n_events & 0xFFFFFFF:07x}{self._process}",
                "tenant": tenant,
                "action": action,
            }
            event |= {name: value for name, value in fields.items() if value is not None}
            self._write(at.date().isoformat(), orjson.dumps(event) + b"\n")

    def close(self) -> None:
        """Write what waits, and close the file."""
        with self._lock:
            self._flush()
            self._close_file()

    def read(self, since: datetime, until: datetime, after: str = "") -> Iterator[Event]:
        """Events in order of time, from `since` up to but without `until`, that follow event id `after`.

        Lines that are not events (a killed process may leave one) are skipped.
        """
        start, end = _stamp(since), _stamp(until)
        first = max(start, after[:13])
        for day in self._days():
            if _stamp(_midnight(day) + timedelta(days=1)) <= first or _stamp(_midnight(day)) >= end:
                continue
            folder = f"{FOLDER}/{day.isoformat()}"
            files = [self._events(f"{folder}/{name}") for name in self.store.list(folder, "*.jsonl")]
            for event in heapq.merge(*files, key=lambda event: str(event["event_id"])):
                if event["event_id"] > after and start <= event["event_id"][:13] < end:
                    yield event

    def sweep(self, ttl_s: float | None) -> int:
        """Remove the days that ended more than `ttl_s` seconds ago (None: none); returns how many."""
        if ttl_s is None:
            return 0
        over = datetime.now(UTC) - timedelta(seconds=ttl_s)
        gone = [day for day in self._days() if _midnight(day) + timedelta(days=1) < over]
        for day in gone:
            self.store.delete(f"{FOLDER}/{day.isoformat()}")
        return len(gone)

    def _write(self, day: str, line: bytes) -> None:
        path = self.store.local_path(f"{FOLDER}/{day}/{self._process}.jsonl")
        if path is None:
            self._waiting.append(line)
            del self._waiting[:-MAX_WAITING]
            if self._timer is None:
                self._timer = threading.Timer(BUCKET_DELAY_S, self._flush_later)
                self._timer.daemon = True
                self._timer.start()
            return
        try:
            if self._file is None or self._day != day:
                self._close_file()
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._day = day
            n_written = os.write(self._file, line)
        except OSError as error:
            raise StoreError(f"the usage log cannot be written: {error.strerror}") from error
        if n_written < len(line):  # the disk is full: the next line begins a file of its own, after the torn one
            self._close_file()
            self._process = secrets.token_hex(6)
            raise StoreError("the usage log cannot be written whole: no space left")

    def _flush_later(self) -> None:
        with self._lock:
            self._timer = None
            with suppress(StoreError):  # the bucket is away: with the next event they are tried again
                self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        day = (_EPOCH + timedelta(microseconds=self._last_us)).date().isoformat()
        path = f"{FOLDER}/{day}/{self._process}-{self._n_files:06d}.jsonl"
        self.store.write_bytes(path, b"".join(self._waiting))
        self._n_files += 1
        self._waiting.clear()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _days(self) -> list[date]:
        """Days that have events, in order; folders of other names are none."""
        found = []
        for name in self.store.list(FOLDER):
            try:
                found.append(date.fromisoformat(name))
            except ValueError:
                continue
        return sorted(found)

    def _events(self, path: str) -> Iterator[Event]:
        with self.store.open_file(path) as file:
            for line in file:
                try:
                    event = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(event, dict) and isinstance(event.get("event_id"), str):
                    yield {name: event.get(name) for name in USAGE.names}


def usage_files(store: Store) -> list[str]:
    """Paths of every file of events in a store."""
    days = store.list(FOLDER)
    return [f"{FOLDER}/{day}/{name}" for day in days for name in store.list(f"{FOLDER}/{day}", "*.jsonl")]


def totals(events: Iterator[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sums of events by tenant and action: how many, refused ones (status from 400 on), rows and bytes."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        key = (event["tenant"], event["action"])
        row = sums.setdefault(
            key,
            {"tenant": key[0], "action": key[1], "n_events": 0, "n_refused": 0}
            | dict.fromkeys(("n_rows_in", "n_rows_out", "n_bytes_in", "n_bytes_out"), 0),
        )
        row["n_events"] += 1
        row["n_refused"] += (event["status"] or 0) >= 400
        for name in ("n_rows_in", "n_rows_out", "n_bytes_in", "n_bytes_out"):
            row[name] += event[name] or 0
    return [sums[key] for key in sorted(sums)]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _stamp(moment: datetime) -> str:
    """A moment as the beginning of event ids: microseconds in 13 hex digits."""
    return f"{max(0, (moment - _EPOCH) // timedelta(microseconds=1)):013x}"
