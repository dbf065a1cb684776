"""Turning a checked request into a job, within the tenant's share of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.responses import Response

from api.errors import ApiError
from api.jobs.record import Job, JobKind
from api.schemas import JobView
from api.service import RETRY_AFTER_S, Service
from curator.errors import MissingDependencyError, StoreError

Announce = Callable[[str], None]
PART_OF = "fine_tuning_job"  # of a request: the id of the fine-tuning job that the job is a part of


def job_links(service: Service, job: Job) -> dict[str, str]:
    """Where a job and what it gave are."""
    root = service.settings.root_path
    links = {"self": f"{root}/v1/jobs/{job.job_id}", "events": f"{root}/v1/jobs/{job.job_id}/events"}
    if job.state == "done" and job.kind == "audit":
        links |= {"result": f"{root}/v1/audits/{job.job_id}", "rows": f"{root}/v1/audits/{job.job_id}/rows"}
    elif job.state == "done" and job.kind == "tokens":
        links["result"] = f"{root}/v1/token-losses/{job.job_id}"
    elif job.state == "done" and job.result is not None:
        links["result"] = f"{root}/v1/mixes/{job.result['mix_id']}"
    return links


def job_view(service: Service, job: Job) -> dict[str, Any]:
    """A job as its tenant may see it: everything but what was sent with it."""
    shown = job.model_dump(mode="json", include={"job_id", "kind", "state", "created_at", "started_at", "ended_at"})
    result = None if job.result is None else {**job.result, **_kept(job)}
    return {
        **shown,
        "n_attempts": job.n_attempts,
        "progress": None if job.progress is None else job.progress.model_dump(mode="json"),
        "error": None if job.error is None else job.error.model_dump(mode="json"),
        "result": result,
        "links": job_links(service, job),
    }


def job_response(service: Service, job: Job, headers: Mapping[str, str]) -> Response:
    """202 with the job, and where to look for it."""
    answer = JobView.model_validate(job_view(service, job)).model_dump_json()
    where = {"Location": f"{service.settings.root_path}/v1/jobs/{job.job_id}", **headers}
    return Response(answer, 202, headers=where, media_type="application/json")


def submit(
    service: Service,
    tenant: str,
    kind: JobKind,
    request: dict[str, Any],
    rows: Path | None,
    announce: Announce | None = None,
) -> Job:
    """Keep a job and wake a worker. Everything here blocks. `announce` is called with its id before it is kept.

    Its end is posted to the webhook, unless it is a part of a fine-tuning job, whose own end is.
    Raises ApiError 501 where there is no queue, 429 when the tenant has its share of jobs, 503 when the queue
    cannot be reached: then there is no job.
    """
    queue, bound = service.queue, service.tenants.quota(tenant, "tenant_jobs")
    if queue is None:
        message = "this service has no job queue: set job_queue to a redis:// or postgresql:// URL"
        raise ApiError(501, "no_job_queue", message)

    def expect(job_id: str) -> None:
        if PART_OF not in request:
            service.webhooks.expect(tenant, job_id)
        if announce is not None:
            announce(job_id)

    with service.submitting:  # so that two requests of one process cannot both take the last place
        n_active = len(service.board.active(tenant=tenant))
        if n_active >= bound:
            message = f"{n_active} jobs of yours wait or run already, the bound is {bound}: try again later"
            raise ApiError(429, "too_many_jobs", message, headers={"Retry-After": str(RETRY_AFTER_S)})
        asked = {**request, "tier": service.tenants.tier(tenant)}
        job = service.board.create(tenant, kind, asked, rows, expect)
    try:
        queue.put(kind, tenant, job.job_id)
    except (StoreError, MissingDependencyError) as error:
        service.webhooks.forget(tenant, job.job_id)
        service.board.withdraw(job)
        raise ApiError(
            503, "queue_unreachable", "the job queue cannot be reached", headers={"Retry-After": str(RETRY_AFTER_S)}
        ) from error
    if kind == "mix" and service.workers is not None:
        service.workers.wake()
    service.metrics.jobs.labels(kind).inc()
    return job


def _kept(job: Job) -> dict[str, Any]:
    """What of the request belongs to the answer: the rows left out by on_bad_rows=drop."""
    return {"dropped": job.request["dropped"]} if "dropped" in job.request else {}
