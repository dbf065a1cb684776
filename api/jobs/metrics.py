"""Metrics of jobs, and the small HTTP server by which a worker offers them with its health.

Labels are kinds, states and tiers (classes of tenants), never a tenant or an id.
"""

import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api.jobs.board import Board
from api.jobs.record import ACTIVE, KINDS, Job, now
from curator.console import product_version
from curator.errors import BadInputError, BallastError

DEFAULT_TIER = "default"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOOK_EVERY_S = 5.0  # between two looks at the board, however often somebody scrapes
HANDLER_TIMEOUT_S = 10.0
SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)


@dataclass(eq=False)  # a registry keeps it by identity
class JobCollector(Collector):
    """Jobs that wait or run, by kind and state, and how long the first of the queue waits; read when scraped.

    A store that cannot be read gives no samples: alerts on absence see it, and the scrape goes on.
    """

    board: Board
    _looked_s: float = float("-inf")
    _found: list[tuple[str, str, datetime]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as they are now."""
        try:
            found = self._jobs()
        except BallastError:
            return
        active = GaugeMetricFamily("ballast_jobs_active", "jobs that wait or run", labels=("kind", "state"))
        oldest = GaugeMetricFamily(
            "ballast_job_queue_oldest_seconds", "age of the oldest job that waits; 0 without one", labels=("kind",)
        )
        counts = Counts((kind, state) for kind, state, _ in found)
        for kind in KINDS:
            for state in sorted(ACTIVE):
                active.add_metric((kind, state), counts[kind, state])
            waiting = [made_at for other, state, made_at in found if (other, state) == (kind, "queued")]
            oldest.add_metric((kind,), (now() - min(waiting)).total_seconds() if waiting else 0.0)
        yield active
        yield oldest

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: registering must not read the store."""
        return iter(())

    def _jobs(self) -> list[tuple[str, str, datetime]]:
        with self._lock:
            if time.monotonic() - self._looked_s > LOOK_EVERY_S:
                self._found = list(self._read())
                self._looked_s = time.monotonic()
            return self._found

    def _read(self) -> Iterator[tuple[str, str, datetime]]:
        for tenant, job_id in self.board.active():
            try:
                job = self.board.read(tenant, job_id)
            except BallastError:  # it ended in this moment, or its record is damaged: the worker sees to it
                continue
            if job.active:
                yield job.kind, job.state, job.created_at


class JobTimes:
    """Counts of jobs that have ended and their seconds, in the registry of a worker, or of a service that runs one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counter("ballast_jobs_ended", "jobs that ended", ("kind", "state"), registry=registry)
        self.seconds = Histogram(
            "ballast_job_seconds",
            "seconds of work on a job, from its last start to its end",
            ("kind", "tier"),
            buckets=SECONDS,
            registry=registry,
        )
        self.wait = Histogram(
            "ballast_job_wait_seconds",
            "seconds from a job's making to its first start",
            ("kind", "tier"),
            buckets=SECONDS,
            registry=registry,
        )

    def observe(self, job: Job) -> None:
        """Count a job that has ended."""
        self.ended.labels(job.kind, job.state).inc()
        started = [event.at for event in job.events if event.kind == "started"]
        if not started or job.ended_at is None:
            return
        tier = str(job.request.get("tier", DEFAULT_TIER))
        self.seconds.labels(job.kind, tier).observe((job.ended_at - started[-1]).total_seconds())
        if job.started_at is not None:
            self.wait.labels(job.kind, tier).observe(max(0.0, (job.started_at - job.created_at).total_seconds()))


class WorkerMetrics:
    """What one worker counts."""

    def __init__(self, board: Board) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(JobCollector(board))
        self.times = JobTimes(self.registry)
        self.running = Gauge("ballast_job_running", "1 while the worker does a job", registry=self.registry)
        info = Gauge("ballast_info", "version of the worker", ("version",), registry=self.registry)
        info.labels(product_version()).set(1)


@contextmanager
def offered(metrics: WorkerMetrics, host: str, port: int, stopping: Callable[[], bool]) -> Iterator[str]:
    """/metrics and /healthz of a worker at an address, for the length of the block; yields the URL.

    /healthz is 503 while the worker is `stopping`. Raises BadInputError when the address cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = HANDLER_TIMEOUT_S

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, METRICS_TYPE, generate_latest(metrics.registry))
            elif self.path == "/healthz":
                state = "stopping" if stopping() else "ok"
                body = orjson.dumps({"status": state, "version": product_version()})
                self._answer(503 if stopping() else 200, "application/json", body)
            else:
                self._answer(404, "text/plain; charset=utf-8", b"there are /metrics and /healthz\n")

        def _answer(self, status: int, media_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server declares it
            """Write nothing of scrapes to stderr."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInputError(f"cannot offer metrics at {host}:{port}: {reason}; give another --metrics-port") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="ballast-metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
