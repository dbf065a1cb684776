"""The rows of a mix: by pages, and whole as JSON Lines, Parquet, Arrow or in the OpenAI form."""

import logging
from email.utils import format_datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.downloads import CHUNK_BYTES, MEDIA_TYPES, Held, MixFile, StoredFormat, none_match, strong_etag
from api.errors import error_response
from api.routes.mixes import IfNoneMatch, Limit, mix_file, page_size
from api.schemas import RowPage, errors
from api.service import Service, service_of
from api.telemetry import log_event
from api.tenancy.auth import GUARDED, MixTenant
from curator.errors import IntegrityError, StoreError
from curator.mix.files import DataFormat

router = APIRouter(prefix="/v1/mixes", tags=["mixes"], responses=GUARDED)

_DATA_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the whole mix",
        "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in set(MEDIA_TYPES.values())},
    },
    206: {"description": "the ranges asked for (all formats but Arrow)"},
    304: {"description": "an entity tag given still fits"},
    **errors(400, 404, 416, 422),
}


# StoredFile reads these two headers itself.
_RANGE_HEADERS = [
    {
        "name": "Range",
        "in": "header",
        "schema": {"type": "string"},
        "description": "byte ranges; not for Arrow",
    },
    {"name": "If-Range", "in": "header", "schema": {"type": "string"}, "description": "entity tag that a range is of"},
]
_REFUSALS = {
    400: ("bad_request", "the Range header is malformed: it has to read like bytes=0-1023"),
    416: ("range_not_satisfiable", "the range asked for lies outside the file"),
}


@router.get("/{mix_id}/rows", response_model=RowPage, responses={304: {}, **errors(404, 422)})
def get_rows(
    request: Request,
    mix_id: str,
    tenant: MixTenant,
    limit: Limit = None,
    after: Annotated[int, Query(ge=-1, le=2**62, description="position of the last row of the page before")] = -1,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Rows in training order with their lineage, by position."""
    mix, bound = mix_file(request, mix_id, tenant), page_size(request, limit)
    etag = strong_etag(f"{mix.manifest.rows_sha256}-{after}-{bound}")
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if none_match(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    rows, next_after = mix.page(after, bound)
    document = {
        "mix_id": mix.manifest.mix_id,
        "n_rows": mix.manifest.n_rows,
        "rows": orjson.Fragment(rows),
        "next_after": next_after,
    }
    return Response(orjson.dumps(document), headers=headers, media_type="application/json")


@router.head("/{mix_id}/data", include_in_schema=False)
@router.get(
    "/{mix_id}/data",
    response_class=StreamingResponse,
    responses=_DATA_RESPONSES,
    openapi_extra={"parameters": _RANGE_HEADERS},
)
async def get_data(
    request: Request,
    mix_id: str,
    tenant: MixTenant,
    data_format: Annotated[DataFormat, Query(alias="format")] = "jsonl",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A whole mix: full rows (jsonl, parquet, arrow) or `{"messages": [...]}` lines for fine-tuning (openai)."""
    # One hop to a thread for all of a small download: each costs about as much as reading it.
    mix, held = await run_in_threadpool(_found, request, mix_id, tenant, data_format)
    etag, media_type = mix.etag(data_format), MEDIA_TYPES[data_format]
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{mix.file_name(data_format)}"',
    }
    if none_match(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    if held is not None:
        headers |= {"Accept-Ranges": "bytes", "Last-Modified": format_datetime(held.modified, usegmt=True)}
        return Response(held.content, headers=headers, media_type=media_type)
    path = None if data_format == "arrow" else await _stored(service_of(request), mix, data_format)
    if path is not None:
        return StoredFile(path, headers=headers, media_type=media_type)
    headers["Accept-Ranges"] = "none"
    if data_format == "parquet":
        headers["Content-Length"] = str(mix.n_parquet_bytes)
    chunks = iter(()) if request.method == "HEAD" else await run_in_threadpool(mix.chunks, data_format)
    return StreamingResponse(chunks, headers=headers, media_type=media_type)


def _found(request: Request, mix_id: str, tenant: str, data_format: DataFormat) -> tuple[MixFile, Held | None]:
    """The mix, and its download where a request for all of it has few bytes; blocks, and raises ApiError 404."""
    mix = mix_file(request, mix_id, tenant)
    if data_format == "arrow" or "range" in request.headers:
        return mix, None
    is_known = none_match(request.headers.get("if-none-match"), mix.etag(data_format))
    return mix, None if is_known else mix.held(data_format)


async def _stored(service: Service, mix: MixFile, data_format: StoredFormat) -> Path | None:
    """The download as a file, rendered first if need be; None where it has to be made while it is sent."""
    path = await run_in_threadpool(mix.stored, data_format)
    if path is not None or data_format == "parquet" or service.store.local_path("") is None:
        return path
    async with service.rendering(f"{mix.path} {data_format}"):
        try:
            return await run_in_threadpool(lambda: mix.stored(data_format) or mix.render(data_format))
        except StoreError as error:
            if isinstance(error, IntegrityError):
                raise
            log_event(logging.WARNING, "download not stored", error)  # no space left, or a store that is read-only
            return None


class StoredFile(FileResponse):
    """starlette's FileResponse, with ETag, Range, If-Range and HEAD, whose refusals have our error body."""

    chunk_size = CHUNK_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or part of it."""
        refusal: Response | None = None

        async def send_unless_refused(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                code, text = _REFUSALS[message["status"]]
                content_range = Headers(raw=message["headers"]).get("content-range")
                refusal = error_response(
                    message["status"], code, text, headers={"Content-Range": content_range} if content_range else None
                )
            if refusal is None:
                await send(message)

        await super().__call__(scope, receive, send_unless_refused)
        if refusal is not None:
            await refusal(scope, receive, send)
