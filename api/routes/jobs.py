"""Jobs of the tenant that asks: list, state and progress, events, cancel."""

import asyncio
import time
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.jobs.record import Job, JobKind, JobState
from api.schemas import (
    JobEvents,
    JobPage,
    JobView,
    errors,
)
from api.service import Service, service_of
from api.submit import job_view
from api.tenancy.auth import GUARDED, Principal, holding_any
from api.tenancy.keys import Scope
from curator.errors import IntegrityError, MissingError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=GUARDED)

LOOK_EVERY_S = 0.5
MAX_WAIT_S = 60.0
DEFAULT_PAGE_JOBS = 100

SCOPES: dict[JobKind, Scope] = {"mix": "mix", "train": "mix", "audit": "audit", "tokens": "sql"}

Asking = Annotated[Principal, Depends(holding_any("mix", "audit", "sql"))]


def no_such_job() -> ApiError:
    """What is answered for a job that is absent, foreign, expired or of another scope."""
    return ApiError(404, "not_found", "no such job: GET /v1/jobs lists them")


def find_job(service: Service, principal: Principal, job_id: str) -> Job:
    """A job that may be seen; raises ApiError 404, the same for an absent, foreign, expired or other scope's job."""
    try:
        job = service.kept_job(principal.tenant, job_id)
    except MissingError as error:
        raise no_such_job() from error
    if SCOPES[job.kind] not in principal.scopes:
        raise no_such_job()
    return job


@router.get("", response_model=JobPage, responses=errors(422))
def list_jobs(
    request: Request,
    asking: Asking,
    kind: Annotated[JobKind | None, Query(description="only of this kind")] = None,
    state: Annotated[JobState | None, Query(description="only in this state")] = None,
    limit: Annotated[int, Query(ge=1, description="jobs of one page, at most the service's bound")] = DEFAULT_PAGE_JOBS,
    after: Annotated[str, Query(max_length=32, description="id of the last job of the page before")] = "",
) -> dict[str, Any]:
    """Jobs in order of time, of the kinds that the key's scopes allow."""
    service = service_of(request)
    bound = min(limit, service.settings.max_page_rows)
    found = (_listed(service, asking, job_id) for job_id in service.board.ids(asking.tenant, after))
    fitting = (job for job in found if job and kind in (None, job.kind) and state in (None, job.state))
    page = list(islice(fitting, bound + 1))
    next_after = page[bound - 1].job_id if len(page) > bound else None
    return {"jobs": [job_view(service, job) for job in page[:bound]], "next_after": next_after}


@router.get("/{job_id}", response_model=JobView, responses=errors(404))
def get_job(request: Request, asking: Asking, job_id: str) -> dict[str, Any]:
    """State, progress and outcome of a job."""
    service = service_of(request)
    return job_view(service, find_job(service, asking, job_id))


@router.get("/{job_id}/events", response_model=JobEvents, responses=errors(404, 422))
async def get_events(
    request: Request,
    asking: Asking,
    job_id: str,
    after: Annotated[int, Query(ge=0, le=2**62, description="number of the last event already seen")] = 0,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for an event or the end")] = 0.0,
) -> dict[str, Any]:
    """What happened to a job. With `wait_s` the answer comes when there is something new, or when the time is over."""
    service = service_of(request)
    deadline_s = time.monotonic() + wait_s
    while True:
        job = await run_in_threadpool(find_job, service, asking, job_id)
        events = [event for event in job.events if event.number > after]
        left_s = deadline_s - time.monotonic()
        if events or not job.active or left_s <= 0 or service.stopping:
            shown = [event.model_dump(mode="json") for event in events]
            return {"job_id": job.job_id, "state": job.state, "events": shown}
        await asyncio.sleep(min(LOOK_EVERY_S, left_s))


@router.delete(
    "/{job_id}",
    response_model=JobView,
    responses={
        202: {"model": JobView, "description": "a worker was asked to stop"},
        204: {"description": "the job had ended; it and its results are removed"},
        **errors(404),
    },
)
def delete_job(request: Request, asking: Asking, job_id: str) -> Response:
    """Cancel a job that waits (200) or runs (202); remove one that has ended, with its results (204)."""
    service = service_of(request)
    if not find_job(service, asking, job_id).active:
        service.board.remove(asking.tenant, job_id)
        return Response(status_code=204)
    try:
        job = service.board.ask_to_cancel(asking.tenant, job_id)
    except MissingError as error:
        raise no_such_job() from error
    answer = JobView.model_validate(job_view(service, job))
    status = 202 if job.active else 200
    return Response(answer.model_dump_json(), status, media_type="application/json")


def _listed(service: Service, asking: Principal, job_id: str) -> Job | None:
    try:
        return find_job(service, asking, job_id)
    except (ApiError, IntegrityError):
        return None
