"""An audit of a job's training rows, where the operator wants one: a job of `api.jobs` for a worker with models.

It runs beside the mixing, and the job goes on once both have ended: what the audit found is an event before anything is
trained or sent. A failed audit becomes a warning event; the job continues.
"""

from collections.abc import Callable
from typing import Any

from api.jobs.control import task_document
from api.openai.records import JobRecord
from api.service import Service
from api.submit import PART_OF, submit
from api.uploads.rows import dropped_rows
from curator.audit.options import AuditOptions
from curator.corpus.task_set import TaskSet
from curator.errors import MissingError
from curator.query.scorers import resolve_scorers
from curator.recipe import Recipe


def with_audit(
    service: Service, record: JobRecord, recipe: Recipe, task_set: TaskSet, write: Callable[[JobRecord], None]
) -> JobRecord:
    """The job with its audit submitted, against the recipe's first pool; `write` keeps the job with the audit's id
    before it is made. Raises ApiError as `submit`."""
    if not service.settings.openai_audit or not recipe.pools:
        return record
    if record.audit_id and service.board.has_record(record.tenant, record.audit_id):
        return record
    pool, bound = recipe.pools[0], service.settings.max_audit_rows
    asked = {name: getattr(pool, name) for name in ("corpus", "aligned", "misaligned", "benign", "hold_out")}
    options = AuditOptions(**asked, score=pool.score.name, eps=pool.score.eps, seed=record.seed)
    try:
        resolve_scorers(service.store, options.pool())
    except MissingError as error:
        return _skipped(record, error.message)
    if task_set.n_rows > bound:
        return _skipped(record, f"the file has more than {bound:,} rows")
    made = record

    def announce(job_id: str) -> None:
        nonlocal made
        made = record.model_copy(update={"audit_id": job_id})
        write(made)

    request = {
        "audit": options.model_dump(mode="json"),
        "task": task_document(task_set),
        "dropped": dropped_rows(task_set, service.settings).model_dump(mode="json"),
        PART_OF: record.id,
    }
    submit(service, record.tenant, "audit", request, task_set.path, announce)
    return made


def audited(service: Service, record: JobRecord) -> tuple[JobRecord, dict[str, str]] | None:
    """The job with what its audit found as an event, and as facts for its metadata; None while it has not ended."""
    if not record.audit_id:
        return record, {}
    try:
        job = service.board.read(record.tenant, record.audit_id)
    except MissingError:
        return _not_done(record, "it was removed"), {}
    if job.active:
        return None
    if job.state != "done" or job.result is None:
        return _not_done(record, job.state if job.error is None else job.error.message), {}
    facts = {"ballast_audit_verdict": str(job.result["verdict"])}
    mean: dict[str, Any] | None = job.result["mean_percentile"]
    if mean is not None:
        facts["ballast_audit_percentile"] = f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"
    text = f"Audit of the training rows: {job.result['verdict']}; {job.result['reason']}"
    return record.event(text, data={"code": "audited", **facts}), facts


def _not_done(record: JobRecord, reason: str) -> JobRecord:
    return record.event(f"The training rows were not audited: {reason}", "warn", data={"code": "audit_failed"})


def _skipped(record: JobRecord, reason: str) -> JobRecord:
    return record.event(f"The training rows are not audited: {reason}", "warn", data={"code": "audit_skipped"})
