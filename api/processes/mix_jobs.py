"""Queued mixes built in a process beside the worker, within the limits of the service that queued them."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.jobs.control import TELL_EVERY_S, Control
from api.jobs.record import Job
from api.processes.builders import Builders, Watch, WorkLimits
from api.settings import Settings
from curator.store.store import Store


@dataclass(frozen=True)
class BoundedMix:
    """The handler of `mix` jobs. A cancelled job, or one that is handed back, ends within a second."""

    builders: Builders = field(default_factory=Builders)

    def __call__(self, store: Store, rows: Path, control: Control) -> dict[str, Any]:
        """Build the mix that a job asks for, as `run_mix` does; raises WorkStoppedError past a limit as well."""

        def watch(report: "Report | None") -> None:
            if report is None:
                control.check()
            elif report.stage is not None:
                control.stage(report.stage, report.number, report.unit)
            else:
                control.advance(report.number or 0)

        limits = job_limits(control.job)
        return self.builders.run(limits, _build, store.url(""), rows, control.job, watch=watch)


def job_limits(job: Job) -> WorkLimits:
    """The limits that a job's request names; those of a service without settings for a job of before they were kept."""
    usual = {name: Settings.model_fields[f"build_{name}"].default for name in ("timeout_s", "memory_bytes")}
    return WorkLimits(**{**usual, **job.request.get("limits", {})})


@dataclass(frozen=True)
class Report:
    """A stage that begins, its total and unit; without a stage, how much of it is done."""

    stage: str | None
    number: int | None
    unit: str = ""


@dataclass
class _Relay:
    """Stands for the worker's Control in the process that builds: it sends what is reported there."""

    job: Job
    send: Watch
    _sent_s: float = float("-inf")

    def stage(self, name: str, total: int | None, unit: str) -> None:
        """See Control.stage."""
        self.send(Report(name, total, unit))

    def advance(self, done: int) -> None:
        """See Control.advance; once a second, for the worker writes no more often."""
        if time.monotonic() - self._sent_s >= TELL_EVERY_S:
            self._sent_s = time.monotonic()
            self.send(Report(None, done))


def _build(root: str, rows: Path, job: Job, send: Watch) -> dict[str, Any]:
    from api.jobs.handlers import run_mix

    return run_mix(Store(root), rows, _Relay(job, send))
