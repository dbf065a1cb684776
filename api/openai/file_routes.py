"""`/v1/files`: upload, list, retrieve, content and delete."""

import hashlib
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response, StreamingResponse

from api.downloads import CHUNK_BYTES
from api.errors import ApiError
from api.jobs.control import task_document
from api.openai.checks import Checked, check_training_file
from api.openai.errors import refused
from api.openai.files import CONTENT_FILE, FileRecord, Files, content_id
from api.openai.pages import page
from api.routes.downloads import get_data
from api.service import Service, service_of
from api.tenancy.auth import MixTenant
from api.uploads.receive import Upload, received
from curator.corpus.formats import ReadLimits
from curator.errors import MissingError
from curator.mix.files import MANIFEST_FILE, mix_path
from curator.mix.identity import read_manifest
from curator.store.store import Store

router = APIRouter(prefix="/v1/files", include_in_schema=False)  # OpenAI's own description holds for these paths

MAX_LIMIT = 10_000
REPORT_S = 86_400  # seconds for which the report of a refused file is kept
_TEXTS = ("expires_after[anchor]", "expires_after[seconds]")
_FIELDS = dict.fromkeys(("purpose", *_TEXTS), False)  # none of which comes several times
_MIN_SECONDS, _MAX_SECONDS = 3_600, 2_592_000
_MEDIA_TYPE = "application/octet-stream"


def missing_file(file_id: str) -> ApiError:
    """The error for a file that is not there, or another tenant's."""
    return refused(404, "not_found", f"No such File object: {file_id[:64]}", "id")


@router.post("")
async def create_file(request: Request, tenant: MixTenant) -> dict[str, Any]:
    """Keep a training file. Bad rows refuse it: the error lists them, and names a file with the whole list."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise refused(415, "unsupported_content_type", "send multipart/form-data with the parts `file` and `purpose`")
    service = service_of(request)
    async with received(request, service, tenant, fields=_FIELDS) as upload, service.build_place(tenant):
        record = await run_in_threadpool(keep_upload, service, upload, tenant)
    return record.view()


def keep_upload(service: Service, upload: Upload, tenant: str) -> FileRecord:
    """The file of an upload, made now or found where the same was sent before; everything here blocks.

    Raises ApiError 400 for a bad parameter or bad rows, 507 when it does not fit.
    """
    purpose = upload.fields.get("purpose")
    if purpose is None:
        raise refused(400, "missing_required_parameter", "Missing required parameter: 'purpose'.", "purpose")
    check_purpose(purpose)
    seconds = _seconds(upload)
    with upload.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    file_id = content_id("file", [tenant, sha256, upload.name, purpose, seconds])
    files = Files(service.store)
    try:
        return files.read(tenant, file_id)
    except MissingError:
        service.stored.check(tenant, upload.n_bytes)
    checked = _check(service, upload, tenant)
    now_s = time.time()
    record = FileRecord(
        file_id=file_id,
        n_bytes=upload.n_bytes,
        created_s=now_s,
        filename=upload.name,
        purpose="fine-tune",
        expires_s=None if seconds is None else now_s + seconds,
        task=task_document(checked.task_set),
    )
    files.add(tenant, record, upload.path, checked.task_set.path)
    return record


def check_purpose(purpose: str) -> None:
    """Raise ApiError 400 for files that are not for fine-tuning."""
    if purpose != "fine-tune":
        raise refused(400, "invalid_value", f"{purpose[:40]!r} is not one of ['fine-tune'] - 'purpose'", "purpose")


def _seconds(upload: Upload) -> int | None:
    """Seconds that the file is to be kept, None for ever."""
    anchor, seconds = (upload.fields.get(name) for name in _TEXTS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise refused(400, "invalid_value", "expires_after.anchor must be 'created_at'", "expires_after.anchor")
    if not (seconds or "").isdecimal() or not _MIN_SECONDS <= int(seconds or 0) <= _MAX_SECONDS:
        message = f"expires_after.seconds must be a number from {_MIN_SECONDS} to {_MAX_SECONDS}"
        raise refused(400, "invalid_value", message, "expires_after.seconds")
    return int(seconds or 0)


def _check(service: Service, upload: Upload, tenant: str) -> Checked:
    """The rows of a training file; raises ApiError 400 with every bad line, after keeping the list as a file."""
    settings = service.settings
    limits = ReadLimits(settings.max_unpacked_bytes, settings.max_task_rows, settings.max_row_bytes)
    checked: Checked = service.run_work(check_training_file, upload.path, upload.folder, upload.name, limits)
    if not checked.faults:
        service.quotas.count_rows(tenant, checked.task_set.n_rows)
        return checked
    report = b"".join(orjson.dumps(fault) + b"\n" for fault in checked.faults)
    now_s = time.time()
    record = FileRecord(
        file_id=content_id("file", [tenant, "report", upload.name, hashlib.sha256(report).hexdigest()]),
        n_bytes=len(report),
        created_s=now_s,
        filename=f"bad-rows-of-{upload.name}",
        purpose="fine-tune-results",
        expires_s=now_s + REPORT_S,
    )
    Files(service.store).add(tenant, record, report)
    bound = settings.max_bad_rows
    message = f"{checked.message()}. All are listed in the file {record.file_id}"
    error = refused(400, checked.code, message, "file", [*checked.faults[:bound], {"report_file": record.file_id}])
    error.truncated = len(checked.faults) > bound
    raise error


@router.get("")
def list_files(
    request: Request,
    tenant: MixTenant,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """Files, newest first unless `order` says otherwise."""
    found = [record.view() for record in Files(service_of(request).store).all(tenant)]
    fitting = [view for view in found if purpose in (None, view["purpose"])]
    return page(fitting if order == "asc" else fitting[::-1], after, limit)


@router.get("/{file_id}")
def get_file(request: Request, tenant: MixTenant, file_id: str) -> dict[str, Any]:
    """One file's description."""
    return find_file(service_of(request), tenant, file_id).view()


@router.get("/{file_id}/content")
async def get_content(request: Request, tenant: MixTenant, file_id: str) -> Response:
    """One file's bytes: as they were sent, or the part of a mix that a job gave."""
    service = service_of(request)
    record = await run_in_threadpool(find_file, service, tenant, file_id)
    if record.mix_id is not None:
        return await _result(request, tenant, record)
    path = f"{Files(service.store).folder(tenant, file_id)}/{CONTENT_FILE}"
    local = service.store.local_path(path)
    if local is not None:
        return FileResponse(local, media_type=_MEDIA_TYPE)
    return StreamingResponse(_chunks(service.store, path), media_type=_MEDIA_TYPE)


@router.delete("/{file_id}")
def delete_file(request: Request, tenant: MixTenant, file_id: str) -> dict[str, Any]:
    """Remove a file. Jobs that were made of it go on: they have their own copy of the rows."""
    service = service_of(request)
    find_file(service, tenant, file_id)
    Files(service.store).remove(tenant, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def find_file(service: Service, tenant: str, file_id: str) -> FileRecord:
    """A file of the tenant; raises ApiError 404, the same for an absent, expired or foreign one."""
    try:
        return Files(service.store).read(tenant, file_id)
    except MissingError as error:
        raise missing_file(file_id) from error


async def _result(request: Request, tenant: str, record: FileRecord) -> Response:
    """A view of a mix; raises ApiError 404 when the mix was deleted or is over its time."""
    service, mix_id = service_of(request), record.mix_id or ""
    try:
        if service.expiry.is_expired(tenant, mix_id):
            raise MissingError("the mix is over its time")
        await run_in_threadpool(read_manifest, service.store, tenant, mix_id)
        if record.part == "manifest":
            path = f"{mix_path(tenant, mix_id)}/{MANIFEST_FILE}"
            return Response(await run_in_threadpool(service.store.read_bytes, path), media_type=_MEDIA_TYPE)
    except MissingError as error:
        raise missing_file(record.file_id) from error
    return await get_data(request, mix_id, tenant, record.part or "openai")


def _chunks(store: Store, path: str) -> Iterator[bytes]:
    with store.open_file(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
