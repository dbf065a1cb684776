"""SQL: named queries with typed inputs, a free statement, and the answer as a table or a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import sql
from api.errors import ApiError
from api.page import answer_plot
from api.page.frame import HEADERS, PageRoute, page
from api.page.session import SqlVisit, read_form, tenant_of
from api.routes.sql import MEDIA_TYPES
from api.service import service_of
from curator.errors import BadInputError, MissingError
from curator.query.queries import view_columns
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
    return await _page(request, Asked(query, statement="" if query else FIRST))


@router.post("/sql")
async def run(request: Request, visit: SqlVisit) -> Response:
    """Run a statement or a named query; the answer as a table, or as a file."""
    fields = await read_form(request)
    given = {key.removeprefix("p."): value for key, value in fields.items() if key.startswith("p.")}
    asked = Asked(fields.get("query", ""), given, fields.get("statement", ""), fields.get("format", ""))
    asked = replace(asked, across=fields.get("across", ""), up=fields.get("up", ""))
    try:
        answer = await _answer(request, asked)
    except (BadInputError, MissingError) as error:
        return await _page(request, asked, problem=error.message)
    if asked.wanted in FORMATS:
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="answer.{asked.wanted}"'}
        return Response(answer.data, headers=headers, media_type=MEDIA_TYPES[asked.wanted])
    shown = orjson.loads(answer.data)
    return await _page(request, asked, shown, answer_plot.draw(shown, _numeric(shown), asked.across, asked.up))


@dataclass(frozen=True)
class Asked:
    """What a form asks for: a named query with its parameters, or a statement; and a file's format, or `plot`.

    `across` and `up` are the columns of the plot, '' for those that `answer_plot` chooses.
    """

    query: str = ""
    given: Mapping[str, str] = field(default_factory=dict)
    statement: str = ""
    wanted: str = ""
    across: str = ""
    up: str = ""


async def _answer(request: Request, form: Asked) -> SqlAnswer:
    service = service_of(request)
    file = form.wanted in FORMATS
    shape: dict[str, Any] = {"result_format": form.wanted if file else "json", "max_rows": None if file else SHOWN_ROWS}
    if form.query:
        asked: dict[str, Any] = {"query": form.query, "params": _params(form.query, form.given)}
    elif form.statement.strip():
        asked = {"statement": form.statement.strip().removesuffix(";")}
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


async def _page(
    request: Request,
    asked: Asked,
    answer: dict[str, Any] | None = None,
    drawn: answer_plot.AnswerPlot | None = None,
    problem: str | None = None,
) -> Response:
    name = asked.query
    if name and name not in sql.query_names():
        raise ApiError(404, "not_found", "there is no such query; /sql lists them")
    columns = await run_in_threadpool(view_columns, service_of(request).store)  # opens a database the first time
    views = [(item, sql.describe_view(item)) for item in sql.VIEWS if item not in sql.MACROS]
    return page(
        request,
        "sql.html",
        queries=[sql.load_query(item) for item in sql.query_names()],
        chosen=sql.load_query(name) if name else None,
        asked=asked,
        answer=answer,
        numeric=_numeric(answer),
        drawn=drawn,
        problem=problem,
        views=views,
        columns=columns,
        formats=FORMATS,
        status=422 if problem else 200,
        twin=f"/v1/queries/{name}" if name else "/v1/sql",
    )


def _numeric(answer: dict[str, Any] | None) -> frozenset[str]:
    """Names of the columns whose values stand at the right."""
    kinds = ("INT", "DOUBLE", "FLOAT", "DECIMAL")
    columns = answer["columns"] if answer else ()
    return frozenset(item["name"] for item in columns if any(kind in item["type"].upper() for kind in kinds))
