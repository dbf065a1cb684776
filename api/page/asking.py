"""Named queries for the views: in the places, and with the bounds, of the API's own figures."""

from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.page.session import tenant_of
from api.routes.corpora import connected, read_scored
from api.service import Service, service_of
from api.tenancy.quotas import MAX_WAIT_S, in_time
from curator.corpus.manifest import Corpus, Scorer, read_scorers
from curator.query.queries import run_named
from sql import Value

Row = dict[str, Any]


Asked = tuple[str, dict[str, Value]]  # a named query and its parameters but the corpus


async def figures(request: Request, corpus: str, query: str, **given: Value) -> list[Row]:
    """Rows of a named query over one corpus, kept until its rows or losses change.

    Raises ApiError 404 without such a corpus.
    """
    (rows,) = await several_figures(request, corpus, (query, given))
    return rows


async def several_figures(request: Request, corpus: str, *queries: Asked) -> list[list[Row]]:
    """The same of several queries, which share a connection and are kept together."""
    service = service_of(request)
    found, scored = await run_in_threadpool(read_scored, service.store, corpus)

    def compute() -> dict[str, Any]:
        return {"rows": _run(service, found, queries)}

    key = ("queries", *scored, *((name, _frozen(given)) for name, given in queries))
    answer = await service.figures.of(tenant_of(request), key, compute)
    rows: list[list[Row]] = answer["rows"]
    return rows


def _run(service: Service, corpus: Corpus, queries: Sequence[Asked]) -> list[list[Row]]:
    with connected(service, corpus) as connection:
        return [
            run_named(connection, name, {"corpus": corpus.name, **given}).table.to_pylist() for name, given in queries
        ]


def _frozen(given: dict[str, Value]) -> tuple[object, ...]:
    return tuple(sorted((name, tuple(value) if isinstance(value, list) else value) for name, value in given.items()))


async def texts(request: Request, corpus: str, *queries: Asked) -> list[list[Row]]:
    """Rows of named queries that hold conversations, which are not kept. Raises as `figures`."""
    service = service_of(request)
    found, _ = await run_in_threadpool(read_scored, service.store, corpus)

    async with in_time(service.figures.turns, tenant_of(request), MAX_WAIT_S, "figures"):
        return await run_in_threadpool(_run, service, found, queries)


async def scorers_of(request: Request, corpus: str) -> list[Scorer]:
    """The scorers of a corpus; raises ApiError 404 without such a corpus."""
    store = service_of(request).store
    found, _ = await run_in_threadpool(read_scored, store, corpus)
    return await run_in_threadpool(read_scorers, store, found)
