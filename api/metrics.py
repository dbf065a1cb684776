"""Prometheus metrics of one process. Labels are route templates, methods and statuses: no tenant and no id."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from api.settings import Settings

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


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
        self.mixes = Counter("ballast_mixes", "mixes asked for", ("outcome",), registry=self.registry)
        self.statements = Counter("ballast_sql_statements", "SQL statements", ("outcome",), registry=self.registry)
        self.jobs = Counter("ballast_jobs", "jobs made", ("kind",), registry=self.registry)
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

    def text(self) -> bytes:
        """The exposition that Prometheus reads."""
        return generate_latest(self.registry)
