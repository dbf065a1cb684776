"""`/v1/fine_tuning/jobs`: create, list, retrieve, cancel, pause and resume (refused), events and checkpoints."""

import asyncio
import time
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from api.errors import ApiError
from api.openai.bodies import CreateJob
from api.openai.create import create_job
from api.openai.errors import refused
from api.openai.pages import page
from api.openai.progress import advance
from api.openai.records import JobRecord, Records
from api.service import Service, service_of
from api.tenancy.auth import MixTenant
from api.uploads.bodies import MAX_ASKED_BYTES, read_asked
from curator.errors import MissingError

router = APIRouter(prefix="/v1/fine_tuning/jobs", include_in_schema=False)

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
CANCEL_WAIT_S = 10.0  # for a worker to stop, which looks once a second
LOOK_EVERY_S = 0.2
RETRY_HEADER = "x-stainless-retry-count"  # the official client's: 0 unless it repeats a request
After = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]


@router.post("")
async def create(request: Request, tenant: MixTenant) -> dict[str, Any]:
    """Make a job, or find the one that the same request made before."""
    body = await read_asked(request, CreateJob, MAX_ASKED_BYTES)
    is_repeat = request.headers.get(RETRY_HEADER, "0") != "0"
    record = await run_in_threadpool(create_job, service_of(request), tenant, body, is_repeat)
    return record.view()


@router.get("")
def list_jobs(request: Request, tenant: MixTenant, after: After = None, limit: Limit = DEFAULT_LIMIT) -> dict[str, Any]:
    """Jobs, newest first; `metadata[KEY]=VALUE` keeps those with that metadata, `metadata=null` those without any."""
    service = service_of(request)
    wanted = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.multi_items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    only_bare = request.query_params.get("metadata") == "null"
    found = [
        record
        for record in Records(service.store).all(tenant)
        if not (only_bare and record.asked["metadata"])
        and wanted.items() <= {**record.asked["metadata"], **record.facts}.items()
    ]
    answer = page([record.view() for record in found], after, limit)
    shown = {item["id"] for item in answer["data"]}
    now = {record.id: advance(service, record) for record in found if record.id in shown and record.is_active}
    answer["data"] = [now[item["id"]].view() if item["id"] in now else item for item in answer["data"]]
    return answer


@router.get("/{job_id}")
def get_job(request: Request, tenant: MixTenant, job_id: str) -> dict[str, Any]:
    """A job as it stands."""
    return find_job(service_of(request), tenant, job_id).view()


@router.post("/{job_id}/cancel")
async def cancel(request: Request, tenant: MixTenant, job_id: str) -> dict[str, Any]:
    """End a job. One that has ended otherwise is refused; one that was cancelled already is answered as it stands."""
    service = service_of(request)
    record = await run_in_threadpool(_ask_to_cancel, service, tenant, job_id)
    deadline_s = time.monotonic() + CANCEL_WAIT_S
    while record.is_active and time.monotonic() < deadline_s and not service.stopping:
        await asyncio.sleep(LOOK_EVERY_S)
        record = await run_in_threadpool(find_job, service, tenant, job_id)
    return record.view()


def _ask_to_cancel(service: Service, tenant: str, job_id: str) -> JobRecord:
    record = find_job(service, tenant, job_id)
    if record.status == "cancelled":
        return record
    if not record.is_active:
        raise refused(400, "invalid_state", f"the job {job_id} has {record.status}: it cannot be cancelled")
    if not record.facts:
        with suppress(MissingError):  # removed in this moment, which ends the job as well
            service.board.ask_to_cancel(tenant, record.work_id)
        if record.audit_id:
            with suppress(MissingError):
                service.board.ask_to_cancel(tenant, record.audit_id)
    if record.mode != "mix" or record.audit_id:
        Records(service.store).ask_to_cancel(tenant, job_id)
    return find_job(service, tenant, job_id)


@router.post("/{job_id}/pause")
def pause(request: Request, tenant: MixTenant, job_id: str) -> dict[str, Any]:
    """Refused: supervised jobs cannot be paused."""
    raise _no_pause(service_of(request), tenant, job_id, "paused")


@router.post("/{job_id}/resume")
def resume(request: Request, tenant: MixTenant, job_id: str) -> dict[str, Any]:
    """Refused: no job was paused."""
    raise _no_pause(service_of(request), tenant, job_id, "resumed")


def _no_pause(service: Service, tenant: str, job_id: str, what: str) -> ApiError:
    find_job(service, tenant, job_id)
    return refused(400, "pause_not_supported", f"jobs of this service cannot be {what}; cancel ends one")


@router.get("/{job_id}/events")
def get_events(
    request: Request, tenant: MixTenant, job_id: str, after: After = None, limit: Limit = DEFAULT_LIMIT
) -> dict[str, Any]:
    """What happened to a job, newest first."""
    return page(find_job(service_of(request), tenant, job_id).event_views()[::-1], after, limit)


@router.get("/{job_id}/checkpoints")
def get_checkpoints(
    request: Request, tenant: MixTenant, job_id: str, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """Checkpoints of a job, newest first; none where nothing is trained."""
    return page(find_job(service_of(request), tenant, job_id).checkpoints, after, limit)


def find_job(service: Service, tenant: str, job_id: str) -> JobRecord:
    """A job of the tenant as it stands; raises ApiError 404, the same for an absent or foreign one."""
    try:
        return advance(service, Records(service.store).read(tenant, job_id))
    except MissingError as error:
        message = f"Could not find fine tune: {job_id[:64]}"
        raise refused(404, "fine_tune_not_found", message, "fine_tune_id") from error
