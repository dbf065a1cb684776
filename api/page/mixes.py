"""Building a mix: a file checked, a recipe chosen, the outcome previewed and built; and the mixes that there are."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.jobs.record import Job
from api.page import recipes, text
from api.page.frame import PageRoute, page, redirect, root_of
from api.page.session import MixVisit, read_form, read_upload_form, tenant_of
from api.processes.looks import look_and_show
from api.routes import downloads
from api.routes.mixes import delete_mix, list_mixes, make_mix, mix_file, preview_upload
from api.service import service_of
from api.uploads.receive import Upload, received
from curator.audit.doctor import DoctorOptions
from curator.corpus.formats import ReadLimits
from curator.corpus.manifest import corpus_names, read_corpus, read_scorers
from curator.errors import BadInputError
from curator.mix.files import DATA_FORMATS, DataFormat
from curator.store.store import Store

router = APIRouter(route_class=PageRoute)
PAGE_MIXES = 50
SHOWN_ROWS = 3  # of a checked file
FORMAT_WORDS = {
    "jsonl": "JSON Lines, whole rows",
    "parquet": "Parquet, whole rows",
    "arrow": "Arrow, whole rows",
    "openai": "messages alone, for fine-tuning",
}


@router.get("/mix")
async def show_builder(
    request: Request, visit: MixVisit, corpus: Annotated[str | None, Query(max_length=100)] = None
) -> Response:
    """The form of the mix builder."""
    names = await run_in_threadpool(corpus_names, service_of(request).store)
    chosen = corpus if corpus in names else next(iter(names), None)
    known = await run_in_threadpool(_known, service_of(request).store, chosen)
    policy = service_of(request).tenants.policy(tenant_of(request))
    return page(
        request,
        "mix.html",
        corpora=names,
        chosen=chosen,
        policy=policy,
        strategies=recipes.STRATEGIES if known["scored"] else {"random": recipes.STRATEGIES["random"]},
        orders=recipes.ORDERS,
        refusals=recipes.REFUSALS,
        inoculations=recipes.INOCULATIONS,
        twin="/v1/mixes/preview",
        **known,
    )


def _known(store: Store, corpus: str | None) -> dict[str, Any]:
    """What the form can offer for a corpus: the domains that may be held out, and whether there is a gap."""
    if corpus is None or corpus not in corpus_names(store):
        return {"domains": [], "scored": False}
    scorers = [item for item in read_scorers(store, read_corpus(store, corpus)) if item.complete]
    roles = {item.role for item in scorers}
    domains = sorted({item.domain for item in scorers if item.role == "misaligned" and item.domain})
    return {"domains": domains if len(domains) > 1 else [], "scored": {"aligned", "misaligned"} <= roles}


@router.post("/mix/preview")
async def preview(request: Request, visit: MixVisit) -> Response:
    """The file checked, and what the recipe would make of it; nothing is stored."""
    service, tenant = service_of(request), tenant_of(request)
    async with received(request, service, tenant, fields=recipes.FIELDS) as upload:
        fields = read_upload_form(request, upload, recipes.FIELDS)
        async with service.build_place(tenant):
            recipe = recipes.recipe_of(fields)
            shown = await run_in_threadpool(_look, request, upload, recipe, tenant)
    base = str(request.base_url).rstrip("/").removesuffix(root_of(request)) + root_of(request)
    code = recipes.as_code(recipe, upload.name or "task.jsonl", upload.fields.get("on_bad_rows", "refuse"), base)
    return page(
        request, "mix_result.html", recipe=recipe, code=code, name=upload.name, twin="/v1/mixes/preview", **shown
    )


def _look(request: Request, upload: Upload, recipe: dict[str, Any], tenant: str) -> dict[str, Any]:
    """What the doctor and the preview say; either may refuse. Everything here blocks."""
    service = service_of(request)
    found: dict[str, Any] = {"check": None, "problem": None, "details": [], "preview": None}
    settings = service.settings
    limits = ReadLimits(settings.max_unpacked_bytes, settings.max_task_rows, settings.max_row_bytes)
    options = DoctorOptions(name=upload.name, limits=limits)
    try:
        check = service.run_work(look_and_show, settings.store, upload.path, options, recipe["corpus"], SHOWN_ROWS)
        found["check"] = {**check, "rejects": check["rejects"][: settings.max_bad_rows]}
        upload.fields["recipe"] = recipe
        found["preview"] = preview_upload(service, upload, tenant)
    except BadInputError as error:
        words = error.message.replace(service.store.url(""), "(store)")
        found |= {"problem": words, "details": [text.detail(item) for item in error.details]}
    except ApiError as error:
        if error.status not in (413, 422):
            raise
        found |= {"problem": error.message, "details": [text.detail(item) for item in error.details]}
    return found


@router.post("/mix/build")
async def build(request: Request, visit: MixVisit) -> Response:
    """Build the mix, or have a worker build it; then its receipt, or its job."""
    service, tenant = service_of(request), tenant_of(request)
    async with received(request, service, tenant, fields=recipes.FIELDS) as upload:
        fields = read_upload_form(request, upload, recipes.FIELDS)
        async with service.build_place(tenant):
            upload.fields["recipe"] = recipes.recipe_of(fields)
            made = await run_in_threadpool(make_mix, service, upload, tenant, None)
    if isinstance(made, Job):
        return redirect(request, f"/jobs/{made.job_id}")
    return redirect(request, f"/mixes/{made.mix_id}", built="now" if made.created else "before")


@router.get("/mixes")
async def show_mixes(request: Request, visit: MixVisit, after: Annotated[str, Query(max_length=32)] = "") -> Response:
    """The tenant's mixes."""
    found = await run_in_threadpool(list_mixes, request, tenant_of(request), PAGE_MIXES, after)
    return page(request, "mixes.html", twin="/v1/mixes", after=after, **found)


@router.get("/mixes/compare")
async def compare(
    request: Request,
    visit: MixVisit,
    first: Annotated[str, Query(max_length=32)] = "",
    second: Annotated[str, Query(max_length=32)] = "",
) -> Response:
    """Two mixes side by side."""
    pair = [await run_in_threadpool(mix_file, request, mix_id, tenant_of(request)) for mix_id in (first, second)]
    manifests = [item.manifest for item in pair]
    return page(request, "compare.html", manifests=manifests, twin="/v1/mixes/{mix_id}")


@router.get("/mixes/{mix_id}")
async def show_mix(
    request: Request, visit: MixVisit, mix_id: str, built: Annotated[str | None, Query(max_length=10)] = None
) -> Response:
    """The receipt of a mix, its downloads and its first rows."""
    mix = await run_in_threadpool(mix_file, request, mix_id, tenant_of(request))
    rows, _ = await run_in_threadpool(mix.page, -1, 12)
    return page(
        request,
        "receipt.html",
        manifest=mix.manifest,
        built=built,
        rows=_read_rows(rows),
        formats={name: FORMAT_WORDS.get(name, name) for name in DATA_FORMATS},
        twin=f"/v1/mixes/{mix.manifest.mix_id}",
    )


def _read_rows(data: bytes) -> list[dict[str, Any]]:
    """Rows of a page as lines to read."""
    rows = orjson.loads(data)
    turns = [row["messages"] if isinstance(row["messages"], list) else orjson.loads(row["messages"]) for row in rows]
    return [{**row, **text.exchange(found)} for row, found in zip(rows, turns, strict=True)]


@router.get("/mixes/{mix_id}/data")
async def download(
    request: Request,
    visit: MixVisit,
    mix_id: str,
    data_format: Annotated[DataFormat, Query(alias="format")] = "jsonl",
) -> Response:
    """A whole mix as a file: what the API gives, for the browser's key."""
    return await downloads.get_data(request, mix_id, tenant_of(request), data_format)


@router.post("/mixes/{mix_id}/delete")
async def remove(request: Request, visit: MixVisit, mix_id: str) -> Response:
    """Remove a mix."""
    await read_form(request)
    await run_in_threadpool(delete_mix, request, mix_id, tenant_of(request))
    return redirect(request, "/mixes")
