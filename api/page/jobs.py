"""Jobs and what they gave: builds that take long, and audits of a user's rows."""

from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.jobs.record import Job
from api.jobs.training import step_lines
from api.page.answer_plot import draw
from api.page.frame import PageRoute, page, redirect
from api.page.session import (
    FORM_FIELD,
    AuditVisit,
    JobVisit,
    principal_of,
    read_form,
    read_upload_form,
    tenant_of,
)
from api.routes.audits import get_audit_rows, submit_audit
from api.routes.jobs import delete_job, find_job, list_jobs
from api.service import service_of
from api.submit import PART_OF, job_view
from api.uploads.receive import received
from curator.corpus.manifest import corpus_names, read_corpus, read_scorers
from curator.store.store import Store

router = APIRouter(route_class=PageRoute)
PAGE_JOBS = 50
AUDIT_FIELDS = {FORM_FIELD: False, "corpus": False}
RISKY_ROWS = 20
MAX_CURVE_STEPS = 400
MAX_CURVE_BYTES = 2**20  # of metrics.jsonl, read each time that the view looks again
LOSS = "loss, nats per token"


@router.get("/jobs")
async def show_jobs(request: Request, visit: JobVisit, after: Annotated[str, Query(max_length=32)] = "") -> Response:
    """The tenant's jobs, mixes and audits."""
    found = await run_in_threadpool(list_jobs, request, principal_of(request), None, None, PAGE_JOBS, after)
    corpora = await run_in_threadpool(auditable, service_of(request).store) if visit.may("audit") else []
    return page(request, "jobs.html", twin="/v1/jobs", after=after, corpora=corpora, **found)


def auditable(store: Store) -> list[str]:
    """Names of the corpora that have a gap, with which an audit compares."""
    found = []
    for name in corpus_names(store):
        roles = {scorer.role for scorer in read_scorers(store, read_corpus(store, name)) if scorer.complete}
        found += [name] if {"aligned", "misaligned"} <= roles else []
    return found


@router.post("/jobs/audit")
async def start_audit(request: Request, visit: AuditVisit) -> Response:
    """Queue an audit of a file against a scored corpus; then its job."""
    service, tenant = service_of(request), tenant_of(request)
    async with received(request, service, tenant, fields=AUDIT_FIELDS) as upload, service.build_place(tenant):
        fields = read_upload_form(request, upload, AUDIT_FIELDS)
        upload.fields["audit"] = {"corpus": fields.get("corpus", "")}
        job = await run_in_threadpool(submit_audit, service, upload, tenant)
    return redirect(request, f"/jobs/{job.job_id}")


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
    curve = await run_in_threadpool(_curve, service.store, job) if job.kind == "train" else None
    return page(
        request,
        "job.html",
        job=job_view(service, job),
        events=job.events,
        rows=rows,
        curve=curve,
        part_of=job.request.get(PART_OF),
        twin=f"/v1/jobs/{job.job_id}",
    )


def _curve(store: Store, job: Job) -> dict[str, Any] | None:
    """The loss of a training so far: a plot of at most 400 steps, and its ends; None before the first step.

    Of a long run the last megabyte of figures is read, which is thousands of steps.
    """
    found = step_lines(store, job.request["run"], last_bytes=MAX_CURVE_BYTES)
    lines = [line for line in found if line.get("loss") is not None]
    if not lines:
        return None
    # Evenly thinned, with the last step: a long run has more steps than the plot has room.
    thinned = lines[:: -(-len(lines) // MAX_CURVE_STEPS)]
    shown = thinned if thinned[-1] is lines[-1] else [*thinned, lines[-1]]
    answer = {"columns": [{"name": "step"}, {"name": LOSS}], "rows": [_point(line) for line in shown]}
    return {
        "plot": draw(answer, frozenset(("step", LOSS)), "step", LOSS).plot,
        "first": _point(lines[0]),
        "last": _point(lines[-1]),
    }


def _point(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": line["step"], LOSS: line["loss"]}


@router.post("/jobs/{job_id}/delete")
async def remove(request: Request, visit: JobVisit, job_id: str) -> Response:
    """Cancel a job that waits or runs; remove one that has ended."""
    await read_form(request)
    answer = await run_in_threadpool(delete_job, request, principal_of(request), job_id)
    return redirect(request, "/jobs" if answer.status_code == 204 else f"/jobs/{job_id}")
