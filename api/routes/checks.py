"""POST /v1/checks: a data set looked at before it is mixed, as `python -m curator doctor` does; nothing is kept."""

import json
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.processes.looks import look
from api.schemas import errors
from api.service import Service, service_of
from api.tenancy.auth import GUARDED, MixTenant
from api.uploads.receive import Upload, received, request_body
from api.uploads.rows import part_document, read_choice
from curator.audit.doctor import DoctorOptions
from curator.corpus.formats import ReadLimits
from curator.errors import MissingError
from curator.recipe.base import CorpusName, Strict
from curator.recipe.document import parse_document

router = APIRouter(prefix="/v1/checks", tags=["checks"], responses=GUARDED)


class CheckRequest(Strict):
    """What is looked for: with a `corpus`, tokens and its aligned model's template; `openai`, an endpoint's checks."""

    corpus: Annotated[CorpusName | None, Field(description="scored corpus whose model will be trained")] = None
    openai: Annotated[bool, Field(description="also say what an endpoint of the OpenAI form would")] = False


@router.post(
    "",
    responses=errors(400, 413, 415, 422, 503, 507),
    openapi_extra={"requestBody": request_body("check", "what to look for, all of it optional", required=False)},
)
async def check(request: Request, tenant: MixTenant) -> Response:
    """Bad rows, duplicates, refusals, tokens against the window, and what the chat template refuses, drops or adds.

    Counts and the first places of each finding; `ok` says whether something should be mended. Nothing is stored.
    """
    service = service_of(request)
    async with received(request, service, tenant, "check") as upload, service.build_place(tenant):
        found = await run_in_threadpool(_check, service, upload, tenant)
    return Response(orjson.dumps(found), media_type="application/json", headers={"Cache-Control": "private, no-store"})


def _check(service: Service, upload: Upload, tenant: str) -> dict[str, Any]:
    asked = parse_document(CheckRequest, part_document(upload, "check", required=False), "check")
    choice, settings = read_choice(upload), service.settings
    if upload.rows is not None:  # in ASCII, and not by orjson: what it cannot write is for the reader to judge
        upload.path.write_text("".join(json.dumps(row) + "\n" for row in upload.rows))
        upload.name = "rows"
    limits = ReadLimits(settings.max_unpacked_bytes, settings.max_task_rows, settings.max_row_bytes)
    container = choice.format if upload.rows is None else "jsonl"
    options = DoctorOptions(container, choice.layout, openai=asked.openai, name=upload.name, limits=limits)
    try:
        found: dict[str, Any] = service.run_work(look, settings.store, upload.path, options, asked.corpus)
    except MissingError as error:  # a name in the request, not in the path
        raise ApiError(422, error.code, error.message, details=error.details) from error
    service.quotas.count_rows(tenant, found["n_records"])
    found["rejects"] = found["rejects"][: settings.max_bad_rows]
    return found
