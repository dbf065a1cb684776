"""SQL: named queries with typed inputs, a free statement, and the answer as a table or a file."""

from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import sql
from api.errors import ApiError
from api.page.frame import HEADERS, PageRoute, page
from api.page.session import SqlVisit, read_form, tenant_of
from api.routes.sql import MEDIA_TYPES
from api.service import service_of
from curator.errors import BadInputError, MissingError
from curator.query.sandbox_client import ResultFormat, SqlAnswer
from sql import Value

router = APIRouter(route_class=PageRoute)
SHOWN_ROWS = 200
FORMATS: tuple[ResultFormat, ...] = ("csv", "json", "parquet", "arrow")
FIRST = """select corpus, role, label, scorer_domain, complete, n_rows
from scorers
order by corpus, role, label"""


@router.get("/sql")
async def show(request: Request, visit: SqlVisit, query: Annotated[str, Query(max_length=100)] = "") -> Response:
    """The form for a statement, or for a named query."""
    return _page(request, query, {}, FIRST if not query else "", None, None)


@router.post("/sql")
async def run(request: Request, visit: SqlVisit) -> Response:
    """Run a statement or a named query; the answer as a table, or as a file."""
    fields = await read_form(request)
    name, statement = fields.get("query", ""), fields.get("statement", "")
    wanted = fields.get("format", "")
    given = {key.removeprefix("p."): value for key, value in fields.items() if key.startswith("p.")}
    try:
        answer = await _answer(request, name, statement, given, wanted)
    except (BadInputError, MissingError) as error:
        return _page(request, name, given, statement, None, error.message)
    if wanted in FORMATS:
        media = MEDIA_TYPES[wanted]
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="answer.{wanted}"'}
        return Response(answer.data, headers=headers, media_type=media)
    return _page(request, name, given, statement, orjson.loads(answer.data), None)


async def _answer(request: Request, name: str, statement: str, given: Mapping[str, str], wanted: str) -> SqlAnswer:
    service = service_of(request)
    file = wanted in FORMATS
    shape: dict[str, Any] = {"result_format": wanted if file else "json", "max_rows": None if file else SHOWN_ROWS}
    if name:
        asked: dict[str, Any] = {"query": name, "params": _params(name, given)}
    elif statement.strip():
        asked = {"statement": statement.strip().removesuffix(";")}
    else:
        raise BadInputError("write a SELECT statement first")
    async with service.sql_place(tenant_of(request)) as sandbox:
        answer = await run_in_threadpool(lambda: sandbox.run(**asked, **shape))
    service.metrics.statements.labels("truncated" if answer.truncated else "whole").inc()
    return answer


def _params(name: str, given: Mapping[str, str]) -> dict[str, Value]:
    """Values of a query's parameters from a form, where an empty field means the default."""
    if name not in sql.query_names():
        raise ApiError(404, "not_found", "there is no such query; /sql lists them")
    known = {param.name: param for param in sql.load_query(name).params}
    try:
        return {key: known[key].parse(text) for key, text in given.items() if key in known and text.strip()}
    except ValueError as error:
        raise BadInputError(str(error)) from error


def _page(
    request: Request,
    name: str,
    given: Mapping[str, str],
    statement: str,
    answer: dict[str, Any] | None,
    problem: str | None,
) -> Response:
    if name and name not in sql.query_names():
        raise ApiError(404, "not_found", "there is no such query; /sql lists them")
    return page(
        request,
        "sql.html",
        queries=[sql.load_query(item) for item in sql.query_names()],
        chosen=sql.load_query(name) if name else None,
        given=given,
        statement=statement,
        answer=answer,
        numeric=_numeric(answer),
        problem=problem,
        views=[(item, sql.describe_view(item)) for item in sql.VIEWS if item not in sql.MACROS],
        formats=FORMATS,
        status=422 if problem else 200,
        twin=f"/v1/queries/{name}" if name else "/v1/sql",
    )


def _numeric(answer: dict[str, Any] | None) -> frozenset[str]:
    """Names of the columns whose values stand at the right."""
    kinds = ("INT", "DOUBLE", "FLOAT", "DECIMAL")
    columns = answer["columns"] if answer else ()
    return frozenset(item["name"] for item in columns if any(kind in item["type"].upper() for kind in kinds))
