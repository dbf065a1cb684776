"""Named queries for the views: in the places, and with the bounds, of the API's own figures."""

from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.page.session import tenant_of
from api.page.text import exchange
from api.routes.corpora import connected, read_scored
from api.service import Service, service_of
from api.tenancy.quotas import MAX_WAIT_S, in_time
from curator.corpus.manifest import Corpus, Scorer, read_scorers
from curator.messages import Message, load_messages
from curator.query.queries import run_named
from curator.select.pool_gaps import pool_messages
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
    # All queries of a view hold the same domains out; those without a gap have no such parameter.
    held = next((given["hold_out"] for _, given in queries if "hold_out" in given), None)
    hold_out = [str(item) for item in held] if isinstance(held, list) else None
    with connected(service, corpus, hold_out) as connection:
        return [
            run_named(connection, name, {"corpus": corpus.name, **given}).table.to_pylist() for name, given in queries
        ]


async def readable(request: Request, corpus: str, rows: Sequence[Row]) -> list[Row]:
    """Rows of a query with their conversations as lines to read. Raises as `figures`."""
    found = await conversations(request, corpus, [row["example_id"] for row in rows])
    return [{**row, **exchange(found[row["example_id"]])} for row in rows]


async def conversations(request: Request, corpus: str, ids: Sequence[str]) -> dict[str, list[Message]]:
    """Some conversations by id: from the corpus's pool where it has one. Raises as `figures`."""
    if not ids:
        return {}
    service = service_of(request)
    found, _ = await run_in_threadpool(read_scored, service.store, corpus)

    def look() -> dict[str, str]:
        held = pool_messages(service.store, found, ids)
        if held is None:
            (rows,) = _run(service, found, [("rows_by_id", {"ids": list(ids)})])
            held = {row["example_id"]: row["messages"] for row in rows}
        return held

    async with in_time(service.figures.turns, tenant_of(request), MAX_WAIT_S, "figures"):
        texts = await run_in_threadpool(look)
    return {key: load_messages(text) for key, text in texts.items()}


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
