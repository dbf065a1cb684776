"""The rows of a mix: by pages, and whole as JSON Lines, Parquet, Arrow or in the OpenAI form."""

import io
from contextlib import suppress
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.auth import GUARDED
from api.downloads import (
    MEDIA_TYPES,
    ByteRange,
    DataFormat,
    MixFile,
    UnsatisfiableRangeError,
    byte_range,
    none_match,
    stored_chunks,
    strong_etag,
)
from api.errors import ApiError
from api.routes.mixes import IfNoneMatch, Limit, Mix, page_size
from api.schemas import (
    RowPage,
    errors,
)
from api.service import service_of

router = APIRouter(prefix="/v1/mixes", tags=["mixes"], responses=GUARDED)

_DATA_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the whole mix",
        "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in set(MEDIA_TYPES.values())},
    },
    206: {"description": "the requested range"},
    304: {"description": "an entity tag given still fits"},
    **errors(404, 416, 422),
}


@router.get("/{mix_id}/rows", response_model=RowPage, responses={304: {}, **errors(404, 422)})
def get_rows(
    request: Request,
    mix: Mix,
    limit: Limit = None,
    after: Annotated[int, Query(ge=-1, le=2**62, description="position of the last row of the page before")] = -1,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Rows in training order with their lineage, by position."""
    bound = page_size(request, limit)
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
@router.get("/{mix_id}/data", response_class=StreamingResponse, responses=_DATA_RESPONSES)
def get_data(
    request: Request,
    mix: Mix,
    data_format: Annotated[DataFormat, Query(alias="format")] = "jsonl",
    if_none_match: IfNoneMatch = None,
    range_header: Annotated[str | None, Header(alias="Range", description="one byte range; Parquet alone")] = None,
    if_range: Annotated[str | None, Header(description="entity tag that a range is to be of")] = None,
) -> Response:
    """A whole mix: full rows (jsonl, parquet, arrow) or `{"messages": [...]}` lines for fine-tuning (openai)."""
    etag = mix.etag(data_format)
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{mix.file_name(data_format)}"',
        "Accept-Ranges": "bytes" if data_format == "parquet" else "none",
    }
    if none_match(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    if data_format == "parquet":
        return _stored_response(request, mix, headers, range_header, if_range)
    return _made_response(request, mix, data_format, headers)


def _made_response(
    request: Request, mix: MixFile, data_format: Literal["jsonl", "arrow", "openai"], headers: dict[str, str]
) -> Response:
    """A format that is made of the stored rows; of a large mix the copy that an earlier download left."""
    media_type, renditions = MEDIA_TYPES[data_format], service_of(request).renditions
    if request.method == "HEAD":
        return StreamingResponse(iter(()), headers=headers, media_type=media_type)
    copy = renditions.find(mix, data_format)
    if copy is not None:
        with suppress(FileNotFoundError):  # removed in this moment
            file = copy.open("rb")
            n_bytes = file.seek(0, io.SEEK_END)
            headers = headers | {"Content-Length": str(n_bytes)}
            return StreamingResponse(stored_chunks(file, ByteRange(0, n_bytes)), headers=headers, media_type=media_type)
    body = renditions.keeping(mix, data_format, mix.chunks(data_format))
    return StreamingResponse(body, headers=headers, media_type=media_type)


def _stored_response(
    request: Request, mix: MixFile, headers: dict[str, str], range_header: str | None, if_range: str | None
) -> Response:
    file, n_bytes = mix.open_stored()
    try:
        asked = byte_range(range_header, if_range, headers["ETag"], n_bytes)
    except UnsatisfiableRangeError as error:
        file.close()
        message = f"the file has {n_bytes} bytes; the requested range lies outside"
        raise ApiError(
            416, "range_not_satisfiable", message, headers={"Content-Range": f"bytes */{n_bytes}"}
        ) from error
    part = asked or ByteRange(0, n_bytes)
    headers = headers | {"Content-Length": str(len(part))}
    if asked is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{n_bytes}"
    if request.method == "HEAD":
        part = ByteRange(0, 0)
    status = 200 if asked is None else 206
    return StreamingResponse(stored_chunks(file, part), status, headers=headers, media_type=MEDIA_TYPES["parquet"])
