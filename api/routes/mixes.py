"""Reading mixes: list, manifest, pages of rows, downloads; and deleting one."""

import io
import re
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.auth import GUARDED, MixTenant
from api.conditional import ByteRange, UnsatisfiableRangeError, byte_range, none_match, some_match, strong_etag
from api.errors import ApiError
from api.mixfiles import MEDIA_TYPES, DataFormat, MixFile, stored_chunks
from api.schemas import MixPage, RowPage, errors
from api.service import service_of
from curator.errors import IntegrityError, MissingError
from curator.manifest import Manifest, read_manifest
from curator.mixrows import MANIFEST_FILE, mix_path, tenant_path
from curator.store import Store

router = APIRouter(prefix="/v1/mixes", tags=["mixes"], responses=GUARDED)

DEFAULT_PAGE_ROWS = 100
_MIX_ID = re.compile(r"[0-9a-f]{32}")

IfNoneMatch = Annotated[str | None, Header(description="entity tags already held: 304 when one still fits")]
Limit = Annotated[int | None, Query(ge=1, description="items of one page, at most the service's bound")]


def mix_links(mix_id: str) -> dict[str, str]:
    """Where the parts of a mix are."""
    base = f"/v1/mixes/{mix_id}"
    return {"self": base, "rows": f"{base}/rows"} | {name: f"{base}/data?format={name}" for name in MEDIA_TYPES}


def _missing() -> ApiError:
    return ApiError(404, "not_found", "there is no such mix; GET /v1/mixes lists them")


def mix_file(request: Request, mix_id: str, tenant: MixTenant) -> MixFile:
    """The mix that a path names; raises ApiError 404, the same for an absent mix and for what can be no id."""
    service = service_of(request)
    store = service.store
    if service.expiry.is_expired(tenant, mix_id):
        raise _missing()
    try:
        return MixFile(store, tenant, read_manifest(store, tenant, mix_id))
    except MissingError as error:
        raise _missing() from error


Mix = Annotated[MixFile, Depends(mix_file)]


@router.get("", response_model=MixPage, responses=errors(422))
def list_mixes(
    request: Request,
    tenant: MixTenant,
    limit: Limit = None,
    after: Annotated[str, Query(max_length=32, description="id of the last mix of the page before")] = "",
) -> dict[str, Any]:
    """Mixes in order of their ids."""
    service = service_of(request)
    bound = _page_size(request, limit)
    names = (name for name in service.store.list(tenant_path(tenant)) if name > after and _MIX_ID.fullmatch(name))
    names = (name for name in names if not service.expiry.is_expired(tenant, name))
    found = (summary for name in names if (summary := _summary(service.store, tenant, name)) is not None)
    page = list(islice(found, bound + 1))
    return {"mixes": page[:bound], "next_after": page[bound - 1]["mix_id"] if len(page) > bound else None}


@router.get("/{mix_id}", response_model=Manifest, responses={304: {}, **errors(404)})
def get_manifest(
    request: Request,
    mix_id: str,
    tenant: MixTenant,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The manifest of a mix, byte for byte as stored; its entity tag is the SHA-256 of those bytes."""
    service = service_of(request)
    store = service.store
    if service.expiry.is_expired(tenant, mix_id):
        raise _missing()
    try:
        path = f"{mix_path(tenant, mix_id)}/{MANIFEST_FILE}"
        etag = strong_etag(store.sha256(path))
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if none_match(if_none_match, etag):
            return Response(status_code=304, headers=headers)
        return Response(store.read_bytes(path), headers=headers, media_type="application/json")
    except MissingError as error:
        raise _missing() from error


@router.get("/{mix_id}/rows", response_model=RowPage, responses={304: {}, **errors(404, 422)})
def get_rows(
    request: Request,
    mix: Mix,
    limit: Limit = None,
    after: Annotated[int, Query(ge=-1, le=2**62, description="position of the last row of the page before")] = -1,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Rows in training order with their lineage, by position."""
    bound = _page_size(request, limit)
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


_DATA_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the whole mix",
        "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in set(MEDIA_TYPES.values())},
    },
    206: {"description": "the range asked for (Parquet)"},
    304: {"description": "an entity tag given still fits"},
    **errors(404, 416, 422),
}


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


@router.delete("/{mix_id}", status_code=204, responses=errors(404, 412))
def delete_mix(
    request: Request,
    mix_id: str,
    tenant: MixTenant,
    if_match: Annotated[str | None, Header(description="the manifest's entity tag: 412 when it has another")] = None,
) -> None:
    """Remove a mix, also one whose manifest is damaged or of an older version.

    Its manifest goes first: what is left after a crash is no mix any more.
    """
    service = service_of(request)
    store = service.store
    if service.expiry.is_expired(tenant, mix_id):
        raise _missing()
    try:
        folder = mix_path(tenant, mix_id)
        etag = strong_etag(store.sha256(f"{folder}/{MANIFEST_FILE}"))
    except MissingError as error:
        raise _missing() from error
    if if_match is not None and not some_match(if_match, etag):
        raise ApiError(412, "precondition_failed", "the mix has another entity tag than If-Match names")
    store.delete(f"{folder}/{MANIFEST_FILE}")
    store.delete(folder)
    service.renditions.drop(tenant, mix_id)


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
        message = f"the file has {n_bytes} bytes; the range asked for lies outside"
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


def _page_size(request: Request, limit: int | None) -> int:
    bound = service_of(request).settings.max_page_rows
    return min(limit or DEFAULT_PAGE_ROWS, bound)


def _summary(store: Store, tenant: str, mix_id: str) -> dict[str, Any] | None:
    """One mix of the list; None when it was deleted meanwhile, or never finished."""
    shown: dict[str, Any] = {"mix_id": mix_id, "status": "damaged", "n_rows": None, "n_safe": None, "corpora": None}
    try:
        manifest = read_manifest(store, tenant, mix_id)
    except MissingError:
        return None
    except IntegrityError:
        return {**shown, "links": mix_links(mix_id)}
    return {
        **shown,
        "status": "complete",
        "n_rows": manifest.n_rows,
        "n_safe": manifest.n_safe,
        "corpora": [pool.corpus for pool in manifest.pools],
        "links": mix_links(mix_id),
    }
