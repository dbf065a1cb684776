"""`/v1/uploads`: a file in parts, which `complete` makes one of `/v1/files`, and `cancel` drops."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from api.errors import ApiError
from api.openai.errors import refused
from api.openai.file_routes import check_purpose, find_file, keep_upload
from api.openai.files import content_id
from api.openai.uploads import PART_ID, UploadRecord, Uploads
from api.service import RETRY_AFTER_S, Service, service_of
from api.tenancy.auth import MixTenant
from api.uploads.bodies import MAX_ASKED_BYTES, read_asked, too_large
from api.uploads.receive import REMEDY, Upload, received
from curator.errors import LockedError, MissingError
from curator.recipe.base import Strict

router = APIRouter(prefix="/v1/uploads", include_in_schema=False)

MAX_UPLOADS = 100  # of a tenant within an hour
MAX_PARTS = 1_000
DATA_PART = "data"
LOCK_WAIT_S = 10.0  # for whoever else changes the same upload or job


class ExpiresAfter(Strict):
    """How long the file is to be kept; read as the fields of a form are."""

    anchor: str = Field(max_length=64)
    seconds: int


class CreateUpload(Strict):
    """The body of a create; `mime_type` is taken and not looked at, since files say themselves what they are."""

    bytes: int = Field(ge=1)
    filename: str = Field(min_length=1, max_length=1_000)
    mime_type: str = Field(max_length=200)
    purpose: str = Field(max_length=64)
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Strict):
    """The body of a complete: the parts in their order, and the MD5 of the whole in hex."""

    part_ids: list[Annotated[str, Field(pattern=PART_ID.pattern)]] = Field(min_length=1, max_length=MAX_PARTS)
    md5: str | None = Field(default=None, max_length=64)


@router.post("")
async def create_upload(request: Request, tenant: MixTenant) -> dict[str, Any]:
    """Begin an upload of a size that is known; raises ApiError 413 for one over the bound of uploads."""
    body = await read_asked(request, CreateUpload, MAX_ASKED_BYTES)
    return (await run_in_threadpool(_create, service_of(request), tenant, body)).view()


@router.post("/{upload_id}/parts")
async def create_part(request: Request, tenant: MixTenant, upload_id: str) -> dict[str, Any]:
    """Take one part, in any order."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise refused(415, "unsupported_content_type", f"send multipart/form-data with the part `{DATA_PART}`")
    service = service_of(request)
    await run_in_threadpool(_look, service, tenant, upload_id)
    async with received(request, service, tenant, fields={}, file_part=DATA_PART) as upload:
        part_id = await run_in_threadpool(_add_part, service, tenant, upload_id, upload)
    return {"id": part_id, "object": "upload.part", "created_at": int(time.time()), "upload_id": upload_id}


@router.post("/{upload_id}/complete")
async def complete_upload(request: Request, tenant: MixTenant, upload_id: str) -> dict[str, Any]:
    """Make the parts one file, which is checked as any other."""
    service = service_of(request)
    body = await read_asked(request, CompleteUpload, MAX_ASKED_BYTES)
    async with service.build_place(tenant):
        return await run_in_threadpool(_complete, service, tenant, upload_id, body)


@router.post("/{upload_id}/cancel")
def cancel_upload(request: Request, tenant: MixTenant, upload_id: str) -> dict[str, Any]:
    """Drop an upload and its parts; one that was cancelled already is answered alike."""
    uploads = Uploads(service_of(request).store)
    with _held(uploads, tenant, upload_id) as record:
        if record.status == "completed":
            raise _ended(record)
        record = record.model_copy(update={"status": "cancelled"})
        uploads.write(tenant, record)
        uploads.drop_parts(tenant, upload_id)
    return record.view()


def _create(service: Service, tenant: str, body: CreateUpload) -> UploadRecord:
    check_purpose(body.purpose)
    if body.bytes > service.settings.max_upload_bytes:
        raise too_large(service.settings.max_upload_bytes, REMEDY)
    uploads = Uploads(service.store)
    if len(uploads.ids(tenant)) >= MAX_UPLOADS:
        message = f"{MAX_UPLOADS} uploads in parts of the last hour are yours already: try again later"
        raise ApiError(429, "too_many_at_once", message, headers={"Retry-After": str(RETRY_AFTER_S)})
    expiry = {} if body.expires_after is None else body.expires_after.model_dump()
    record = UploadRecord(
        id="",
        n_bytes=body.bytes,
        created_s=time.time(),
        filename=body.filename,
        purpose=body.purpose,
        expires_after={f"expires_after[{name}]": str(value) for name, value in expiry.items()},
    )
    return uploads.add(tenant, record)


def _add_part(service: Service, tenant: str, upload_id: str, upload: Upload) -> str:
    uploads = Uploads(service.store)
    if not upload.n_bytes:
        raise refused(400, "invalid_value", "a part must have at least one byte", DATA_PART)
    with upload.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    part_id = content_id("part", [upload_id, sha256])
    with _held(uploads, tenant, upload_id) as record:
        _check_pending(record)
        parts = {name: n_bytes for name, n_bytes in uploads.parts(tenant, upload_id).items() if name != part_id}
        if sum(parts.values()) + upload.n_bytes > record.n_bytes:
            message = f"the parts have more than the {record.n_bytes} bytes that the upload was to have"
            raise refused(400, "invalid_value", message, DATA_PART)
        if len(parts) >= MAX_PARTS:
            raise refused(400, "invalid_value", f"an upload has at most {MAX_PARTS} parts", DATA_PART)
        service.stored.check(tenant, upload.n_bytes)
        uploads.add_part(tenant, upload_id, part_id, upload.path)
    return part_id


def _complete(service: Service, tenant: str, upload_id: str, body: CompleteUpload) -> dict[str, Any]:
    uploads = Uploads(service.store)
    with _held(uploads, tenant, upload_id) as record:
        if record.status == "completed" and record.file_id is not None:  # its answer was lost
            return record.view(find_file(service, tenant, record.file_id).view())
        _check_pending(record)
        return _completed(service, tenant, record, body)


def _completed(service: Service, tenant: str, record: UploadRecord, body: CompleteUpload) -> dict[str, Any]:
    uploads, upload_id = Uploads(service.store), record.id
    parts = uploads.parts(tenant, upload_id)
    unknown = [part_id for part_id in body.part_ids if part_id not in parts]
    if unknown:
        raise refused(400, "invalid_value", f"part {unknown[0]} is not of this upload", "part_ids")
    n_bytes = sum(parts[part_id] for part_id in body.part_ids)
    if n_bytes != record.n_bytes:
        message = f"the parts have {n_bytes} bytes, the upload was to have {record.n_bytes}"
        raise refused(400, "invalid_value", message, "part_ids")
    fields = {"purpose": record.purpose, **record.expires_after}
    with closing(Upload(service.settings.temp_dir, fields, record.filename, n_bytes=n_bytes)) as upload:
        uploads.join(tenant, upload_id, body.part_ids, upload.path)
        _check_md5(upload, body.md5)
        file = keep_upload(service, upload, tenant)
    record = record.model_copy(update={"status": "completed", "file_id": file.file_id})
    uploads.write(tenant, record)
    uploads.drop_parts(tenant, upload_id)
    return record.view(file.view())


def _check_md5(upload: Upload, wanted: str | None) -> None:
    if wanted is None:
        return
    with upload.path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != wanted.lower():
        raise refused(400, "invalid_value", f"the parts together have the MD5 {found}", "md5")


def _find(uploads: Uploads, tenant: str, upload_id: str) -> UploadRecord:
    """An upload of the tenant; raises ApiError 404, the same for an absent, expired or foreign one."""
    try:
        return uploads.read(tenant, upload_id)
    except MissingError as error:
        raise refused(404, "not_found", f"No such Upload object: {upload_id[:64]}", "upload_id") from error


def _look(service: Service, tenant: str, upload_id: str) -> None:
    """Raise ApiError for an upload that takes no parts, before any of its bytes are read."""
    _check_pending(_find(Uploads(service.store), tenant, upload_id))


def _check_pending(record: UploadRecord) -> None:
    if record.status != "pending":
        raise _ended(record)


@contextmanager
def _held(uploads: Uploads, tenant: str, upload_id: str) -> Iterator[UploadRecord]:
    """The upload, which no other request of any process changes during the block; waits for one that does.

    Raises ApiError 404 as `_find`, 503 when the other takes longer than LOCK_WAIT_S.
    """
    _find(uploads, tenant, upload_id)  # the lock would make a folder
    with ExitStack() as stack:
        try:
            stack.enter_context(uploads.store.lock(uploads.folder(tenant, upload_id), wait_s=LOCK_WAIT_S))
        except LockedError as error:
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            raise ApiError(503, "busy", "another request changes this upload: try again", headers=headers) from error
        yield _find(uploads, tenant, upload_id)


def _ended(record: UploadRecord) -> ApiError:
    return refused(400, "invalid_state", f"the upload {record.id} is {record.status}")
