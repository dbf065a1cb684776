"""Mixes: a data set and a recipe in, a mix with its manifest out; and listing, reading and deleting mixes."""

import re
import time
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.downloads import (
    MEDIA_TYPES,
    MixFile,
    none_match,
    some_match,
    strong_etag,
)
from api.errors import ApiError
from api.idempotency import IdempotencyKey, Remembered
from api.jobs.control import task_document
from api.jobs.record import Job
from api.processes.builders import kept_store
from api.schemas import (
    Cost,
    CreatedMix,
    DroppedRows,
    JobView,
    MixPage,
    MixPreview,
    errors,
)
from api.service import Service, service_of
from api.settings import Settings
from api.submit import Announce, job_response, submit
from api.tenancy.auth import GUARDED, MixTenant
from api.uploads.bodies import MAX_ASKED_BYTES, asked_body, read_asked
from api.uploads.receive import Upload, received, request_body
from api.uploads.rows import checked_rows, dropped_rows, part_document
from curator.corpus.task_set import TaskSet
from curator.errors import IntegrityError, MissingError, TooManyRowsError
from curator.mix.build import MixResult, build_lasting, preview_mix, remove_mix
from curator.mix.files import MANIFEST_FILE, mix_path, tenant_path
from curator.mix.identity import Manifest, read_manifest
from curator.mix.private import Declaration, Offer, TaskDeclaration, offer, offer_json
from curator.mix.sign import Signature
from curator.recipe import Recipe, parse_recipe

router = APIRouter(prefix="/v1/mixes", tags=["mixes"], responses=GUARDED)

DEFAULT_PAGE_ROWS = 100
MAX_OFFERED_ROWS = 100_000  # safe rows of one private offer, which is held in memory
_MIX_ID = re.compile(r"[0-9a-f]{32}")

IfNoneMatch = Annotated[str | None, Header(description="entity tags already held: 304 when one still fits")]
Limit = Annotated[int | None, Query(ge=1, description="items of one page, at most the service's bound")]


class PrivateMixRequest(TaskDeclaration):
    """A recipe and what the client declares of its rows: their number and hashes, and no text."""

    recipe: dict[str, Any]


def mix_links(service: Service, mix_id: str) -> dict[str, str]:
    """Where the parts of a mix are."""
    base = f"{service.settings.root_path}/v1/mixes/{mix_id}"
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


REQUEST_BODY = request_body("recipe", "the recipe")


@router.post(
    "",
    status_code=201,
    response_model=CreatedMix,
    responses={
        200: {"model": CreatedMix, "description": "made before"},
        202: {"model": JobView, "description": "a job was made, because the build is long or `Prefer` requested one"},
        **errors(400, 409, 413, 415, 422, 501, 503, 507),
    },
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def create_mix(
    request: Request,
    tenant: MixTenant,
    idempotency_key: IdempotencyKey = None,
    prefer: Annotated[str | None, Header(description="`respond-async`: answer 202 and build in a job")] = None,
) -> Response:
    """Mix safe rows into a data set. The same request against the same store gives the same mix, then with 200.

    The rows are checked before any answer. A data set of more rows or bytes than the service's `async_rows` and
    `async_bytes` is then built by a worker: 202 with a job, whose result is the mix.
    Bad rows refuse the whole set and are all listed (up to a cap); with `on_bad_rows=drop` they are left out,
    counted and listed in the answer.
    """
    service = service_of(request)
    async with received(request, service, tenant) as upload, service.build_place(tenant):
        answer, replayed = await run_in_threadpool(_answer, service, upload, tenant, idempotency_key, prefer)
    again = {"Idempotency-Replayed": "true"} if replayed else {}
    if isinstance(answer, Job):
        service.metrics.mixes.labels("replayed" if replayed else "queued").inc()
        return job_response(service, answer, again | _applied(prefer))
    service.metrics.mixes.labels("replayed" if replayed else "created" if answer.created else "found").inc()
    headers = {"Location": answer.links["self"]} | again
    status = 201 if answer.created else 200
    return Response(answer.model_dump_json(), status, headers=headers, media_type="application/json")


@router.post(
    "/preview",
    response_model=MixPreview,
    responses=errors(400, 413, 415, 422, 503, 507),
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def preview(request: Request, tenant: MixTenant) -> Response:
    """The manifest, counts, tokens and cost that a recipe would give for a data set; nothing is stored."""
    service = service_of(request)
    async with received(request, service, tenant) as upload, service.build_place(tenant):
        answer = await run_in_threadpool(preview_upload, service, upload, tenant)
    return Response(answer.model_dump_json(), media_type="application/json")


@router.post(
    "/private",
    response_model=Offer,
    responses=errors(400, 413, 415, 422, 503),
    openapi_extra={"requestBody": asked_body(PrivateMixRequest)},
)
async def offer_private(request: Request, tenant: MixTenant) -> Response:
    """Privacy mode: safe rows and their places for a data set that stays with the client, which declares its number of
    rows and hashes. The client makes the mix; nothing is stored, and the same request gets the same answer."""
    service = service_of(request)
    with service.upload_place(tenant):
        asked = await read_asked(request, PrivateMixRequest, MAX_ASKED_BYTES)
        async with service.build_place(tenant):
            answer = await run_in_threadpool(_offer, service, asked, tenant)
    return Response(answer, media_type="application/json", headers={"Cache-Control": "private, no-store"})


def _answer(
    service: Service, upload: Upload, tenant: str, key: str | None, prefer: str | None
) -> tuple[CreatedMix | Job, bool]:
    """The answer and whether it is an earlier one again. Everything here blocks; it runs in a thread."""
    with closing(upload):
        return _answer_upload(service, upload, tenant, key, prefer)


def _answer_upload(
    service: Service, upload: Upload, tenant: str, key: str | None, prefer: str | None
) -> tuple[CreatedMix | Job, bool]:
    if key is None:
        return make_mix(service, upload, tenant, prefer), False
    with service.idempotency.holding(tenant, key):
        fingerprint = upload.fingerprint()
        earlier = service.idempotency.earlier(tenant, key, fingerprint)
        if earlier is not None:
            with suppress(MissingError):  # a mix or job that was deleted since, or is over its time, is made again
                return _again(service, tenant, earlier), True
        with service.idempotency.announcing(tenant, key, fingerprint) as announce:
            answer = make_mix(service, upload, tenant, prefer, announce)
        if isinstance(answer, CreatedMix):
            kept = Remembered(
                request_sha256=fingerprint,
                mix_id=answer.mix_id,
                created=answer.created,
                dropped=answer.dropped,
                at_s=time.time(),
            )
            service.idempotency.remember(tenant, key, kept)
        return answer, False


def _again(service: Service, tenant: str, earlier: Remembered) -> CreatedMix | Job:
    """The answer given before; raises MissingError when what it named is gone for its readers."""
    if earlier.job_id is not None:
        return service.kept_job(tenant, earlier.job_id)
    mix_id = earlier.mix_id or ""
    if service.expiry.is_expired(tenant, mix_id):
        raise MissingError("the mix is over its time")
    return CreatedMix(
        mix_id=mix_id,
        created=earlier.created,
        manifest=read_manifest(service.store, tenant, mix_id),
        signature=service.signature(tenant, mix_id),
        dropped=earlier.dropped or DroppedRows(n_rows=0, codes={}, details=[], truncated=False),
        links=mix_links(service, mix_id),
    )


def make_mix(
    service: Service, upload: Upload, tenant: str, prefer: str | None, announce: Announce | None = None
) -> CreatedMix | Job:
    """The mix of an upload, or a job where it is long. Everything here blocks."""
    recipe, task_set = _asked(service, upload, tenant)
    service.stored.check(tenant, upload.n_bytes)
    if _applied(prefer) or is_long(service.settings, upload.n_bytes, task_set.n_rows):
        asked = mix_request(service, recipe, task_set, tenant)
        return submit(service, tenant, "mix", asked, task_set.path, announce)
    return _build(service, recipe, task_set, tenant)


def _applied(prefer: str | None) -> dict[str, str]:
    """The header that says that `respond-async` (RFC 7240) was followed; empty without it."""
    asked = {item.split(";")[0].strip().lower() for item in (prefer or "").split(",")}
    return {"Preference-Applied": "respond-async"} if "respond-async" in asked else {}


def is_long(settings: Settings, n_bytes: int, n_rows: int) -> bool:
    """Whether a data set is too large to be built while its sender waits."""
    return n_rows > settings.async_rows or n_bytes > settings.async_bytes


def mix_request(service: Service, recipe: Recipe, task_set: TaskSet, tenant: str) -> dict[str, Any]:
    """What a job that builds a mix is given."""
    policy = service.tenants.policy(tenant)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "policy": None if policy is None else policy.model_dump(mode="json"),
        "mix_ttl_s": service.settings.mix_ttl_s,
        "task": task_document(task_set),
        "dropped": dropped_rows(task_set, service.settings).model_dump(mode="json"),
        "limits": asdict(service.work_limits),
    }


def _build(service: Service, recipe: Recipe, task_set: TaskSet, tenant: str) -> CreatedMix:
    try:
        ttl_s = service.settings.mix_ttl_s
        asked = (task_set, recipe, tenant, service.tenants.policy(tenant))
        result: MixResult = service.run_work(_build_mix, service.settings.store, *asked, ttl_s)
    except MissingError as error:  # a name in the recipe, not in the path: 422 and not 404
        raise ApiError(422, error.code, error.message, details=error.details) from error
    return CreatedMix(
        mix_id=result.mix_id,
        created=result.created,
        manifest=result.manifest,
        signature=service.signature(tenant, result.mix_id),
        dropped=dropped_rows(task_set, service.settings),
        links=mix_links(service, result.mix_id),
    )


def _build_mix(root: str, *asked: Any) -> MixResult:
    """Builds in a process of its own, where stores stay open."""
    return build_lasting(kept_store(root), *asked)


def _preview_mix(root: str, *asked: Any) -> Manifest:
    return preview_mix(kept_store(root), *asked)


def _offer_rows(root: str, *asked: Any) -> bytes:
    return offer_json(offer(kept_store(root), *asked))


def preview_upload(service: Service, upload: Upload, tenant: str) -> MixPreview:
    """What an upload would give; nothing is stored. Everything here blocks."""
    recipe, task_set = _asked(service, upload, tenant)
    try:
        asked = (task_set, recipe, tenant, service.tenants.policy(tenant))
        manifest: Manifest = service.run_work(_preview_mix, service.settings.store, *asked)
    except MissingError as error:
        raise ApiError(422, error.code, error.message, details=error.details) from error
    task, safe = manifest.tokens.task, manifest.tokens.safe
    n_tokens, n_extra = (task.total, safe.total) if task and safe else (None, None)
    return MixPreview(
        manifest=manifest,
        dropped=dropped_rows(task_set, service.settings),
        cost=Cost(
            extra_rows=manifest.n_safe,
            extra_rows_share=manifest.n_safe / (manifest.n_rows - manifest.n_safe),
            extra_tokens=n_extra,
            extra_tokens_share=n_extra / n_tokens if n_extra is not None and n_tokens else None,
        ),
    )


def _offer(service: Service, asked: PrivateMixRequest, tenant: str) -> bytes:
    declared = asked.model_dump(exclude={"recipe"})
    declaration = Declaration(recipe=parse_recipe(asked.recipe), **declared)
    if asked.n_rows > service.settings.max_task_rows:
        raise TooManyRowsError(f"{asked.n_rows:,} rows are declared, the bound is {service.settings.max_task_rows:,}")
    service.quotas.count_rows(tenant, asked.n_rows)
    try:
        policy = service.tenants.policy(tenant)
        return service.run_work(_offer_rows, service.settings.store, declaration, policy, MAX_OFFERED_ROWS)
    except MissingError as error:  # a name in the recipe, not in the path: 422 and not 404
        raise ApiError(422, error.code, error.message, details=error.details) from error


def _asked(service: Service, upload: Upload, tenant: str) -> tuple[Recipe, TaskSet]:
    """The recipe and the data set of an upload, both checked, and counted against the quota."""
    recipe = parse_recipe(part_document(upload, "recipe"))
    return recipe, checked_rows(service, upload, tenant, service.settings.max_task_rows)


@router.get("", response_model=MixPage, responses=errors(422))
def list_mixes(
    request: Request,
    tenant: MixTenant,
    limit: Limit = None,
    after: Annotated[str, Query(max_length=32, description="id of the last mix of the page before")] = "",
) -> dict[str, Any]:
    """Mixes in order of their ids."""
    service = service_of(request)
    bound = page_size(request, limit)
    names = (name for name in service.store.list(tenant_path(tenant)) if name > after and _MIX_ID.fullmatch(name))
    names = (name for name in names if not service.expiry.is_expired(tenant, name))
    found = (summary for name in names if (summary := _summary(service, tenant, name)) is not None)
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


@router.get("/{mix_id}/signature", response_model=Signature, responses=errors(404))
def get_signature(request: Request, mix: Mix) -> Signature:
    """The Ed25519 signature of a mix's manifest (docs/mixing.md, Receipt)."""
    found = service_of(request).signature(mix.tenant, mix.manifest.mix_id)
    if found is None:
        raise ApiError(404, "not_signed", "this mix has no signature: the service has no signing key (sign_key)")
    return found


@router.delete("/{mix_id}", status_code=204, responses=errors(404, 412))
def delete_mix(
    request: Request,
    mix_id: str,
    tenant: MixTenant,
    if_match: Annotated[str | None, Header(description="the manifest's entity tag: 412 when it has another")] = None,
) -> None:
    """Remove a mix, also one whose manifest is damaged or of an older version.

    Its manifest goes first: what is left after a crash is not a mix any more.
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
    remove_mix(store, tenant, mix_id)


def page_size(request: Request, limit: int | None) -> int:
    """Items of one page: the limit of the request, at most the service's bound."""
    bound = service_of(request).settings.max_page_rows
    return min(limit or DEFAULT_PAGE_ROWS, bound)


def _summary(service: Service, tenant: str, mix_id: str) -> dict[str, Any] | None:
    """One mix of the list; None when it was deleted meanwhile, or never finished."""
    shown: dict[str, Any] = {"mix_id": mix_id, "status": "damaged", "n_rows": None, "n_safe": None, "corpora": None}
    try:
        manifest = read_manifest(service.store, tenant, mix_id)
    except MissingError:
        return None
    except IntegrityError:
        return {**shown, "links": mix_links(service, mix_id)}
    return {
        **shown,
        "status": "complete",
        "n_rows": manifest.n_rows,
        "n_safe": manifest.n_safe,
        "corpora": [pool.corpus for pool in manifest.pools],
        "links": mix_links(service, mix_id),
    }
