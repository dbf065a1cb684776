"""SQL for the curious: one read-only statement over the scored corpora, and the named queries."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field, StrictFloat, StrictInt
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import sql
from api.errors import ApiError
from api.schemas import QueryList, SqlResult, errors
from api.service import Service, service_of
from api.tenancy.auth import GUARDED, SqlTenant, holding
from api.uploads.bodies import MAX_ASKED_BYTES, asked_body, read_asked
from curator.errors import MissingError
from curator.query.sandbox_client import ResultFormat, SqlAnswer
from curator.recipe.base import Strict

router = APIRouter(prefix="/v1", tags=["sql"], responses=GUARDED)

MEDIA_TYPES: dict[ResultFormat, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": SqlResult,
        "description": "the rows; X-Ballast-Rows and X-Ballast-Truncated say how many and whether a cap cut them",
        "content": {media.split(";")[0]: _BINARY for name, media in MEDIA_TYPES.items() if name != "json"},
    },
    **errors(400, 404, 413, 415, 422, 501, 503),
}


class _Asked(Strict):
    format: ResultFormat = "json"
    max_rows: Annotated[StrictInt | None, Field(ge=1, le=2**31, description="at most the service's bound")] = None


class SqlRequest(_Asked):
    """One SELECT over the views corpora, examples, sources, rejects, scorers, scores, gap and gap_rows(...)."""

    statement: Annotated[str, Field(min_length=1, max_length=50_000)]


class QueryRequest(_Asked):
    """Parameters of a named query, by name; those left out take their defaults."""

    params: dict[str, StrictInt | StrictFloat | str | list[str] | list[float] | None] = Field(default_factory=dict)


@router.post(
    "/sql", response_model=SqlResult, responses=_ANSWERS, openapi_extra={"requestBody": asked_body(SqlRequest)}
)
async def run_sql(request: Request, tenant: SqlTenant) -> Response:
    """One read-only statement over the scored corpora, never over users' data; in a process of its own.

    Time, memory, rows and bytes are bounded; `truncated` says that there were more rows.
    """
    service = service_of(request)
    asked = await read_asked(request, SqlRequest, _max_bytes(service))
    async with service.sql_place(tenant) as sandbox:
        answer = await run_in_threadpool(
            sandbox.run, asked.statement, result_format=asked.format, max_rows=asked.max_rows
        )
    return _response(service, answer, asked.format)


@router.get("/queries", response_model=QueryList, dependencies=[Depends(holding("sql"))])
def list_queries() -> dict[str, Any]:
    """The named queries with their parameters, and the views that statements may read."""
    queries = [sql.load_query(name) for name in sql.query_names()]
    return {
        "queries": [
            {"name": query.name, "doc": query.doc, "params": [vars(param) for param in query.params]}
            for query in queries
        ],
        "views": [{"name": name, "doc": sql.describe_view(name)} for name in sql.VIEWS],
    }


@router.post(
    "/queries/{name}",
    response_model=SqlResult,
    responses=_ANSWERS,
    openapi_extra={"requestBody": asked_body(QueryRequest)},
)
async def run_query(request: Request, tenant: SqlTenant, name: str) -> Response:
    """One named query with its parameters bound by type."""
    if name not in sql.query_names():
        raise ApiError(404, "not_found", "there is no such query; GET /v1/queries lists them")
    service = service_of(request)
    asked = await read_asked(request, QueryRequest, _max_bytes(service))
    async with service.sql_place(tenant) as sandbox:
        try:
            answer = await run_in_threadpool(
                sandbox.run, query=name, params=asked.params, result_format=asked.format, max_rows=asked.max_rows
            )
        except MissingError as error:
            raise ApiError(422, error.code, error.message) from error
    return _response(service, answer, asked.format)


def _max_bytes(service: Service) -> int:
    return min(MAX_ASKED_BYTES, service.settings.max_json_bytes)


def _response(service: Service, answer: SqlAnswer, result_format: ResultFormat) -> Response:
    service.metrics.statements.labels("truncated" if answer.truncated else "whole").inc()
    headers = {
        "X-Ballast-Rows": str(answer.n_rows),
        "X-Ballast-Truncated": str(answer.truncated).lower(),
        "Cache-Control": "private, no-store",
    }
    return Response(answer.data, headers=headers, media_type=MEDIA_TYPES[result_format])
