"""POST /v1/mixes: a user's data set and a recipe in, a mix with its manifest out."""

from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.auth import GUARDED, MixTenant
from api.errors import ApiError
from api.idempotency import Remembered
from api.recipes import decode_recipe
from api.routes.mixes import mix_links
from api.schemas import Cost, CreatedMix, DroppedRows, MixPreview, errors
from api.service import Service, service_of
from api.settings import Settings
from api.uploads import REQUEST_BODY, Upload, received
from curator.build import build_mix
from curator.config import Recipe, parse_recipe
from curator.errors import MissingError, RecipeError
from curator.formats import Container, Layout
from curator.manifest import read_manifest
from curator.preview import preview_mix
from curator.tasks import TaskSet, read_task_set, task_set_from_rows

router = APIRouter(prefix="/v1/mixes", tags=["mixes"], responses=GUARDED)


class _Options(BaseModel):
    """What may stand beside the rows and the recipe."""

    model_config = ConfigDict(extra="forbid")

    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    format: Container | None = None
    layout: Layout | None = None


@router.post(
    "",
    status_code=201,
    response_model=CreatedMix,
    responses={200: {"model": CreatedMix, "description": "made before"}, **errors(400, 409, 413, 415, 422, 503)},
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def create_mix(
    request: Request,
    tenant: MixTenant,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="the same key and request: the first answer again")
    ] = None,
) -> Response:
    """Mix safe rows into a data set. The same request against the same store gives the same mix, then with 200.

    Bad rows refuse the whole set and are all listed (up to a cap); with `on_bad_rows=drop` they are left out,
    counted and listed in the answer.
    """
    service = service_of(request)
    async with received(request, service.settings) as upload:
        service.quotas.count_bytes(tenant, upload.n_bytes)
        async with service.build_place(tenant):
            outcome = await run_in_threadpool(_answer, service, upload, tenant, idempotency_key)
    answer, replayed = outcome
    service.metrics.mixes.labels("replayed" if replayed else "created" if answer.created else "found").inc()
    headers = {"Location": answer.links["self"]} | ({"Idempotency-Replayed": "true"} if replayed else {})
    status = 201 if answer.created else 200
    return Response(answer.model_dump_json(), status, headers=headers, media_type="application/json")


@router.post(
    "/preview",
    response_model=MixPreview,
    responses=errors(400, 413, 415, 422, 503),
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def preview(request: Request, tenant: MixTenant) -> Response:
    """The manifest, counts, tokens and cost that a recipe would give for a data set; nothing is stored."""
    service = service_of(request)
    async with received(request, service.settings) as upload:
        service.quotas.count_bytes(tenant, upload.n_bytes)
        async with service.build_place(tenant):
            answer = await run_in_threadpool(_preview, service, upload, tenant)
    return Response(answer.model_dump_json(), media_type="application/json")


def _answer(service: Service, upload: Upload, tenant: str, key: str | None) -> tuple[CreatedMix, bool]:
    """The answer and whether it is an earlier one again. Everything here blocks; it runs in a thread."""
    if key is None:
        return _build(service, upload, tenant), False
    with service.idempotency.holding(tenant, key):
        fingerprint = upload.fingerprint()
        earlier = service.idempotency.earlier(tenant, key, fingerprint)
        if earlier is not None:
            with suppress(MissingError):  # a mix that was deleted since is built again
                return _again(service, tenant, earlier), True
        answer = _build(service, upload, tenant)
        service.idempotency.remember(tenant, key, fingerprint, answer.mix_id, answer.created, answer.dropped)
        return answer, False


def _again(service: Service, tenant: str, earlier: Remembered) -> CreatedMix:
    manifest = read_manifest(service.store, tenant, earlier.mix_id)
    return CreatedMix(
        mix_id=earlier.mix_id,
        created=earlier.created,
        manifest=manifest,
        dropped=earlier.dropped,
        links=mix_links(earlier.mix_id),
    )


def _build(service: Service, upload: Upload, tenant: str) -> CreatedMix:
    recipe, task_set = _asked(service, upload, tenant)
    try:
        result = build_mix(service.store, task_set, recipe, tenant, service.policy)
        if not result.created and service.expiry.remove_expired(tenant, result.mix_id):
            result = build_mix(service.store, task_set, recipe, tenant, service.policy)
    except MissingError as error:  # a name in the recipe, not in the path: 422 and not 404
        raise ApiError(422, error.code, error.message, details=error.details) from error
    return CreatedMix(
        mix_id=result.mix_id,
        created=result.created,
        manifest=result.manifest,
        dropped=_dropped(task_set, service.settings),
        links=mix_links(result.mix_id),
    )


def _preview(service: Service, upload: Upload, tenant: str) -> MixPreview:
    recipe, task_set = _asked(service, upload, tenant)
    try:
        manifest = preview_mix(service.store, task_set, recipe, tenant, service.policy)
    except MissingError as error:
        raise ApiError(422, error.code, error.message, details=error.details) from error
    task, safe = manifest.tokens.task, manifest.tokens.safe
    n_tokens, n_extra = (task.total, safe.total) if task and safe else (None, None)
    return MixPreview(
        manifest=manifest,
        dropped=_dropped(task_set, service.settings),
        cost=Cost(
            extra_rows=manifest.n_safe,
            extra_rows_share=manifest.n_safe / (manifest.n_rows - manifest.n_safe),
            extra_tokens=n_extra,
            extra_tokens_share=n_extra / n_tokens if n_extra is not None and n_tokens else None,
        ),
    )


def _asked(service: Service, upload: Upload, tenant: str) -> tuple[Recipe, TaskSet]:
    """The recipe and the data set of an upload, both checked, and counted against the quota."""
    recipe = parse_recipe(_recipe_document(upload))
    options = _options(upload)
    task_set = _read(upload, options, service.settings)
    _check(task_set, options, service.settings)
    service.quotas.count_rows(tenant, task_set.n_rows)
    return recipe, task_set


def _recipe_document(upload: Upload) -> Any:
    if "recipe" not in upload.fields:
        raise ApiError(422, "missing_part", 'the recipe is missing: the least is {"corpus": NAME}')
    recipe = upload.fields["recipe"]
    document = decode_recipe(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(document, dict):
        raise RecipeError("recipe refused: it must be an object (JSON) or a mapping (YAML)")
    return document


def _options(upload: Upload) -> _Options:
    given = {name: value for name, value in upload.fields.items() if name != "recipe"}
    try:
        return _Options.model_validate(given)
    except ValidationError as error:
        details = [
            {"pointer": "/" + "/".join(map(str, item["loc"])), "message": item["msg"]} for item in error.errors()
        ]
        message = "; ".join(f"{item['pointer']}: {item['message']}" for item in details)
        raise ApiError(422, "bad_parameters", message, details=details) from error


def _read(upload: Upload, options: _Options, settings: Settings) -> TaskSet:
    if upload.rows is not None:
        return task_set_from_rows(upload.rows, upload.folder, layout=options.layout)
    return read_task_set(
        upload.path,
        upload.folder,
        format=options.format,
        layout=options.layout,
        name=upload.name,
        max_unpacked_bytes=settings.max_unpacked_bytes,
    )


def _check(task_set: TaskSet, options: _Options, settings: Settings) -> None:
    """Refuse what is too large, empty, or has bad rows that were not to be dropped."""
    if task_set.n_parsed > settings.max_task_rows:
        message = f"the data set has {task_set.n_parsed} rows; the bound is {settings.max_task_rows}: split it"
        raise ApiError(413, "too_many_rows", message)
    if task_set.n_rejected and (options.on_bad_rows == "refuse" or not task_set.n_rows):
        dropped = _dropped(task_set, settings)
        remedy = "mend them, or send on_bad_rows=drop" if task_set.n_rows else "no row can be used"
        message = f"{task_set.n_rejected} of {task_set.n_parsed} rows are bad: {remedy}"
        raise ApiError(422, "bad_rows", message, details=dropped.details, truncated=dropped.truncated)
    if not task_set.n_rows:
        raise ApiError(422, "no_rows", "the data set has no rows")


def _dropped(task_set: TaskSet, settings: Settings) -> DroppedRows:
    rejects = task_set.rejects[: settings.max_bad_rows]
    return DroppedRows(
        n_rows=task_set.n_rejected,
        codes=task_set.reject_codes,
        details=[problem for reject in rejects for problem in reject.as_dicts()][: settings.max_bad_rows],
        truncated=task_set.n_rejected > settings.max_bad_rows
        or sum(len(reject.problems) for reject in rejects) > settings.max_bad_rows,
    )
