"""POST /v1/token-losses: the losses of single tokens of one corpus row, by a worker with the corpus's models."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.jobs.board import TOKENS_FILE, job_path
from api.jobs.record import Job
from api.routes.corpora import connected, read_scored
from api.routes.jobs import find_job, no_such_job
from api.schemas import JobView, TokenLosses, errors
from api.service import Service, service_of
from api.submit import job_response, submit
from api.tenancy.auth import GUARDED, Principal, SqlTenant, holding_any
from api.tenancy.quotas import MAX_WAIT_S, in_time
from api.uploads.bodies import MAX_ASKED_BYTES, asked_body, read_asked
from curator.corpus.manifest import Corpus, read_scorers
from curator.query.queries import run_named
from curator.recipe.base import CorpusName, Strict

router = APIRouter(prefix="/v1/token-losses", tags=["corpora"], responses=GUARDED)

Reader = Annotated[Principal, Depends(holding_any("sql"))]


class TokenLossRequest(Strict):
    """One row of a scored corpus."""

    corpus: CorpusName
    example_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses=errors(400, 413, 415, 422, 429, 501, 503),
    openapi_extra={"requestBody": asked_body(TokenLossRequest)},
)
async def create_token_losses(request: Request, tenant: SqlTenant) -> Response:
    """The loss of each token of a row under every finished model of its corpus: a job for a worker that has them.

    A job of the tenant for the same row that has not ended is answered again.
    """
    service = service_of(request)
    asked = await read_asked(request, TokenLossRequest, min(MAX_ASKED_BYTES, service.settings.max_json_bytes))
    try:
        job = await submit_token_losses(service, tenant, asked)
    except ApiError as error:
        if error.status == 404:  # a name in the body, not in the path
            raise ApiError(422, error.code, error.message) from error
        raise
    return job_response(service, job, {})


@router.get("/{job_id}", response_model=TokenLosses, responses=errors(404, 409))
def get_token_losses(request: Request, asking: Reader, job_id: str) -> dict[str, Any]:
    """Tokens of the row in order, and their losses in nats under each model, or why there are none."""
    service = service_of(request)
    job = find_token_job(service, asking, job_id)
    if job.state != "done":
        raise ApiError(409, "job_not_done", f"the job is {job.state}: GET /v1/jobs/{job.job_id} says more")
    return read_token_losses(service, job)


async def submit_token_losses(service: Service, tenant: str, asked: TokenLossRequest) -> Job:
    """The job for a row, an earlier one where that has not ended.

    Raises ApiError 404 without the corpus or row, 422 for a corpus without a finished aligned model, else as `submit`.
    """
    found, _ = await run_in_threadpool(read_scored, service.store, asked.corpus)
    scorers = await run_in_threadpool(read_scorers, service.store, found)
    if not any(scorer.role == "aligned" and scorer.complete for scorer in scorers):
        raise ApiError(422, "bad_input", "no aligned model has finished this corpus: there is nothing to compare with")
    async with in_time(service.figures.turns, tenant, MAX_WAIT_S, "figures"):
        is_there = await run_in_threadpool(_has_row, service, found, asked.example_id)
    if not is_there:
        raise ApiError(404, "not_found", "the corpus has no row of this id")
    return await run_in_threadpool(_job, service, tenant, asked)


def find_token_job(service: Service, principal: Principal, job_id: str) -> Job:
    """A job of token losses; raises ApiError 404 as for any absent job."""
    job = find_job(service, principal, job_id)
    if job.kind != "tokens":
        raise no_such_job()
    return job


def read_token_losses(service: Service, job: Job) -> dict[str, Any]:
    """What a job that is done has found."""
    found: dict[str, Any] = service.store.read_json(f"{job_path(job.tenant, job.job_id)}/{TOKENS_FILE}")
    return found


def _has_row(service: Service, corpus: Corpus, example_id: str) -> bool:
    with connected(service, corpus) as connection:
        found = run_named(connection, "rows_by_prefix", {"corpus": corpus.name, "prefix": example_id, "n": 1})
        return bool(found.table.num_rows)


def _job(service: Service, tenant: str, asked: TokenLossRequest) -> Job:
    request = asked.model_dump()
    with service.submitting_tokens:  # so that two requests of one process cannot both find none
        for _, job_id in service.board.active("tokens", tenant):
            if service.board.has_record(tenant, job_id):
                job = service.board.read(tenant, job_id)
                if job.active and {name: job.request.get(name) for name in request} == request:
                    return job
        return submit(service, tenant, "tokens", request, None)
