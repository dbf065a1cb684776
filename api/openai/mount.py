"""Adding the OpenAI form to the application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool

from api.openai import file_routes, job_routes, model_routes, upload_routes
from api.openai.errors import OpenAIErrors
from api.openai.forward import Forwarder
from api.openai.keeper import Keeper
from api.openai.upstream import UpstreamClient
from api.service import Service


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    keeper: Keeper = app.state.openai
    keeper.start()
    yield
    await run_in_threadpool(keeper.stop)


def mount(app: FastAPI) -> None:
    """Add the routes, the thread that looks after jobs, and the middleware that puts errors into OpenAI's shape.

    Raises BadInputError when the key of the upstream cannot be read.
    """
    service: Service = app.state.service
    upstream = UpstreamClient.of(service.settings)
    app.state.openai = Keeper(service, None if upstream is None else Forwarder(service, upstream))
    router = APIRouter(lifespan=_lifespan)
    for module in (file_routes, job_routes, model_routes, upload_routes):
        router.include_router(module.router)
    app.include_router(router)
    app.add_middleware(OpenAIErrors)
