"""Jobs and what they gave: builds that take long, and audits of a user's rows."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.page.frame import PageRoute, page, redirect
from api.page.session import JobVisit, principal_of, read_form
from api.routes.audits import get_audit_rows
from api.routes.jobs import delete_job, find_job, list_jobs
from api.service import service_of
from api.submit import job_view

router = APIRouter(route_class=PageRoute)
PAGE_JOBS = 50
RISKY_ROWS = 20


@router.get("/jobs")
async def show_jobs(request: Request, visit: JobVisit, after: Annotated[str, Query(max_length=32)] = "") -> Response:
    """The tenant's jobs, mixes and audits."""
    found = await run_in_threadpool(list_jobs, request, principal_of(request), None, None, PAGE_JOBS, after)
    return page(request, "jobs.html", twin="/v1/jobs", after=after, **found)


@router.get("/jobs/{job_id}")
async def show_job(request: Request, visit: JobVisit, job_id: str) -> Response:
    """One job: its progress while it runs, what it gave or why it failed; of an audit the riskiest rows."""
    service, principal = service_of(request), principal_of(request)
    job = await run_in_threadpool(find_job, service, principal, job_id)
    rows: list[dict[str, Any]] = []
    if job.kind == "audit" and job.state == "done":
        answer = await run_in_threadpool(get_audit_rows, request, principal, job_id, service.settings.max_page_rows, -1)
        judged = [row for row in orjson.loads(answer.body)["rows"] if row["percentile"] is not None]
        rows = sorted(judged, key=lambda row: (-row["percentile"], row["ordinal"]))[:RISKY_ROWS]
    return page(
        request, "job.html", job=job_view(service, job), events=job.events, rows=rows, twin=f"/v1/jobs/{job.job_id}"
    )


@router.post("/jobs/{job_id}/delete")
async def remove(request: Request, visit: JobVisit, job_id: str) -> Response:
    """Cancel a job that waits or runs; remove one that has ended."""
    await read_form(request)
    answer = await run_in_threadpool(delete_job, request, principal_of(request), job_id)
    return redirect(request, "/jobs" if answer.status_code == 204 else f"/jobs/{job_id}")
