"""POST /v1/audits: a user's rows to a worker with models; and what it found."""

from contextlib import suppress
from typing import Annotated, Any

import orjson
import pyarrow.parquet as pq
from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.idempotency import IdempotencyKey
from api.jobs.board import ROWS_FILE, job_path
from api.jobs.control import task_document
from api.jobs.record import Job
from api.routes.jobs import find_job, no_such_job
from api.schemas import (
    AuditReport,
    AuditRowPage,
    JobView,
    errors,
)
from api.service import Service, service_of
from api.submit import Announce, job_response, submit
from api.tenancy.auth import (
    GUARDED,
    AuditTenant,
    Principal,
    holding_any,
)
from api.uploads.receive import Upload, received, request_body
from api.uploads.rows import checked_rows, dropped_rows, part_document
from curator.audit.options import parse_options
from curator.errors import MissingError
from curator.query.scorers import resolve_scorers

router = APIRouter(prefix="/v1/audits", tags=["audits"], responses=GUARDED)

DEFAULT_PAGE_ROWS = 100
Auditor = Annotated[Principal, Depends(holding_any("audit"))]


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses=errors(400, 409, 413, 415, 422, 501, 503, 507),
    openapi_extra={"requestBody": request_body("audit", "corpus, scorers, score and seed of the audit")},
)
async def create_audit(request: Request, tenant: AuditTenant, idempotency_key: IdempotencyKey = None) -> Response:
    """Compare a data set's gap with a scored corpus: a job for a worker that has the corpus's models.

    The rows are checked before the answer and kept under the tenant until the job ends. Needs the scope `audit`;
    audits of a tenant are counted by the hour.
    """
    service = service_of(request)
    async with received(request, service, tenant, "audit") as upload, service.build_place(tenant):
        job, replayed = await run_in_threadpool(_answer, service, upload, tenant, idempotency_key)
    return job_response(service, job, {"Idempotency-Replayed": "true"} if replayed else {})


@router.get("/{job_id}", response_model=AuditReport, responses=errors(404, 409))
def get_audit(request: Request, asking: Auditor, job_id: str) -> dict[str, Any]:
    """The verdict of an audit that is done, with its interval and counts."""
    result = _done(service_of(request), asking, job_id).result
    assert result is not None
    return result


@router.get("/{job_id}/rows", response_model=AuditRowPage, responses=errors(404, 409, 422))
def get_audit_rows(
    request: Request,
    asking: Auditor,
    job_id: str,
    limit: Annotated[int, Query(ge=1, description="rows of one page, at most the service's bound")] = DEFAULT_PAGE_ROWS,
    after: Annotated[int, Query(ge=-1, le=2**62, description="ordinal of the last row of the page before")] = -1,
) -> Response:
    """The rows of an audit in the order sent: percentile of risk against the pool, or why a row is not judged."""
    service = service_of(request)
    job = _done(service, asking, job_id)
    with service.store.open_file(f"{job_path(job.tenant, job.job_id)}/{ROWS_FILE}") as file:
        table = pq.ParquetFile(file).read()
    bound = min(limit, service.settings.max_page_rows)
    page = table.slice(after + 1, bound)
    more = after + 1 + page.num_rows < table.num_rows
    document = {
        "job_id": job.job_id,
        "n_rows": table.num_rows,
        "rows": page.to_pylist(),
        "next_after": after + page.num_rows if more else None,
    }
    return Response(
        orjson.dumps(document), media_type="application/json", headers={"Cache-Control": "private, no-store"}
    )


def _answer(service: Service, upload: Upload, tenant: str, key: str | None) -> tuple[Job, bool]:
    """The job and whether it is an earlier one again. Everything here blocks."""
    if key is None:
        return submit_audit(service, upload, tenant), False
    with service.idempotency.holding(tenant, key):
        fingerprint = upload.fingerprint()
        earlier = service.idempotency.earlier(tenant, key, fingerprint)
        if earlier is not None and earlier.job_id is not None:
            with suppress(MissingError):  # a job that was removed since, or is over its time, is made again
                return service.kept_job(tenant, earlier.job_id), True
        with service.idempotency.announcing(tenant, key, fingerprint) as announce:
            return submit_audit(service, upload, tenant, announce), False


def submit_audit(service: Service, upload: Upload, tenant: str, announce: Announce | None = None) -> Job:
    """The job of an audit of an upload, whose part `audit` says what is asked; blocks. Raises ApiError."""
    options = parse_options(part_document(upload, "audit"))
    try:
        resolve_scorers(service.store, options.pool())
    except MissingError as error:  # a name in the body, not in the path: 422 and not 404
        raise ApiError(422, error.code, error.message, details=error.details) from error
    task_set = checked_rows(service, upload, tenant, service.settings.max_audit_rows)
    service.stored.check(tenant, upload.n_bytes)
    request = {
        "audit": options.model_dump(mode="json"),
        "task": task_document(task_set),
        "dropped": dropped_rows(task_set, service.settings).model_dump(mode="json"),
    }
    with service.quotas.audit(tenant):
        return submit(service, tenant, "audit", request, task_set.path, announce)


def _done(service: Service, asking: Principal, job_id: str) -> Job:
    """The finished job of an audit; raises ApiError 404 as for any absent job, 409 before (or without) its end."""
    job = find_job(service, asking, job_id)
    if job.kind != "audit":
        raise no_such_job()
    if job.state != "done":
        raise ApiError(409, "job_not_done", f"the audit is {job.state}: GET /v1/jobs/{job.job_id} says more")
    return job
