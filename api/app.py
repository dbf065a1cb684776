"""The application: routes, error handlers and the observing layer around one service."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pyarrow as pa
from fastapi import FastAPI, Request
from fastapi.dependencies.utils import get_dependant, get_flat_dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from api import openai
from api.errors import (
    ApiError,
    handle_http_error,
    handle_product_error,
    handle_system_error,
    handle_validation_error,
)
from api.middleware import HeadAsGet, Observe, RefuseForeign
from api.page import router as page_router
from api.routes import (
    audits,
    checks,
    corpora,
    downloads,
    health,
    jobs,
    mixes,
    policy,
    reports,
    sql,
    token_losses,
    usage,
)
from api.schemas import errors
from api.service import Service
from api.settings import Settings
from api.telemetry import log_event
from curator.console import product_version
from curator.errors import BallastError
from curator.query.confine import available
from curator.recipe.problems import problem_line
from curator.store.store import Store

SWEEP_S = 600.0
DESCRIPTION = """\
Send fine-tuning data and a recipe; get back a training mix with safe rows interleaved against emergent misalignment,
and a manifest that says what went in, what was kept out and why. Every error has one body:
`{"error": {"code", "message", "details": [...]}}`, with `"truncated": true` when `details` was cut."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    there = available()
    log_event(logging.INFO, "confinement of statements", landlock=there["landlock"], seccomp=there["seccomp"])
    sweeping = asyncio.create_task(_sweep(service))
    service.webhooks.start()
    warming = asyncio.create_task(run_in_threadpool(_warm, service))
    yield
    service.stopping = True
    sweeping.cancel()
    await warming
    service.close()


def _warm(service: Service) -> None:
    """Do beforehand what the first requests would wait for."""
    pa.array([None])  # pyarrow imports pandas for its first array: half a second where that is installed
    service.builders.warm()


async def _sweep(service: Service) -> None:
    """Tidy up at the start and then now and again: a failure is logged and tried again."""
    while True:
        try:
            await run_in_threadpool(service.tidy)
        except Exception as error:  # whatever it is, the next sweep is not to be lost with this one
            log_event(logging.WARNING, "sweep failed", error)
        await asyncio.sleep(min(SWEEP_S, service.settings.mix_ttl_s or SWEEP_S))


def _query_check(route: APIRoute) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses a parameter of the query that the route does not have, or that came twice.

    It would have no effect. The dependency raises ApiError 422.
    """
    known: dict[str, bool] = {}  # whether it may come several times
    for field in get_flat_dependant(route.dependant).query_params:
        kind = field.field_info.annotation
        several = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        for name, info in several.items() if several else ((field.alias, field.field_info),):
            known[name] = "list[" in str(info.annotation)

    elsewhere = _elsewhere(route)

    async def check(request: Request) -> None:  # not for a thread: it takes microseconds
        if request.query_params:
            _refuse_others(request, known, elsewhere)

    return check


def _elsewhere(route: APIRoute) -> dict[str, str]:
    """What a route takes in its headers and its body, and where: people write it into the query."""
    found = {
        field.alias.lower().replace("-", "_"): f"send it as the header {field.alias.title()}"
        for field in get_flat_dependant(route.dependant).header_params
    }
    content = (route.openapi_extra or {}).get("requestBody", {}).get("content", {})
    for kind, words in (
        ("application/json", "send it as the key {} of the JSON body"),
        ("multipart/form-data", "send it as a part of the form, -F {}=..."),
    ):
        for name in content.get(kind, {}).get("schema", {}).get("properties", ()):
            found[name] = " or ".join(filter(None, (words.format(name), found.get(name))))
    return found


def _refuse_others(request: Request, known: Mapping[str, bool], elsewhere: Mapping[str, str]) -> None:
    given = Counter(name for name, _ in request.query_params.multi_items())
    details = [
        {
            "pointer": f"/query/{name}"[:200],
            "message": "given twice: keep one" if name in known else _no_parameter(name, elsewhere),
        }
        for name, n in given.items()
        if name not in known or (n > 1 and not known[name])
    ]
    if details:
        there = f"there are: {', '.join(sorted(known))}" if known else "this route takes none"
        raise ApiError(422, "bad_parameters", f"{problem_line(details)}; {there}", details=details)


def _no_parameter(name: str, elsewhere: Mapping[str, str]) -> str:
    remedy = elsewhere.get(name.lower().replace("-", "_"))
    return "no such parameter" if remedy is None else f"no parameter of the query: {remedy}"


def create_app(settings: Settings) -> FastAPI:
    """The service over one store. Nothing is read before the first request.

    Raises StoreError when the store's address cannot be understood.
    """
    app = FastAPI(
        title="Ballast",
        version=product_version(),
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere; ours (/docs) needs nothing
        redoc_url=None,
        root_path=settings.root_path,
        redirect_slashes=False,
        responses=errors(422),
        lifespan=_lifespan,
    )
    app.state.service = Service(settings, Store(settings.store))
    app.add_middleware(HeadAsGet)
    app.add_middleware(RefuseForeign)
    app.add_middleware(Observe)  # the outermost: refusals are logged too
    app.add_exception_handler(OSError, handle_system_error)
    app.add_exception_handler(BallastError, handle_product_error)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(HTTPException, handle_http_error)
    for module in (mixes, checks, downloads, jobs, audits, corpora, token_losses, reports, policy, sql, usage):
        app.include_router(module.router)
    for route in app.routes:
        if isinstance(route, APIRoute):  # its last dependency: whoever has no key learns that first
            route.dependant.dependencies.append(get_dependant(path=route.path_format, call=_query_check(route)))
    app.include_router(health.router)  # whose callers add parameters of their own
    app.include_router(page_router)
    openai.mount(app)
    return app
