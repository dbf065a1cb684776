"""Is the process alive, can it serve, and what does it offer."""

import logging
import tempfile
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from api.auth import GUARDED, AdminTenant
from api.errors import ApiError
from api.schemas import Health, Readiness, errors
from api.service import Service, service_of
from api.telemetry import log_event
from curator.errors import BallastError

router = APIRouter(tags=["service"])

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
td {{ padding: .2em 1em .2em 0; vertical-align: top }}
code {{ white-space: nowrap }}
</style><h1>{title}</h1><p>{description}</p>
<p>The full description is <a href="openapi.json">openapi.json</a>.</p><table>{rows}</table></html>"""


# A response class with a media type would give errors that type too; they are JSON like all others.
_METRICS_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


@router.get("/healthz", response_model=Health)
async def healthz(request: Request) -> dict[str, str]:
    """The process answers, also when every thread waits for a store that is away; it says nothing about the store."""
    return {"status": "ok", "version": request.app.version}


@router.get("/readyz", response_model=Readiness, responses=errors(503))
def readyz(request: Request) -> dict[str, Any]:
    """The store can be read, has this version's format, and uploads can be taken; otherwise 503. Kept for a second."""
    service = service_of(request)
    if service.stopping:
        raise ApiError(503, "stopping", "the service is finishing its last requests")
    if not service.readiness.get(lambda: _is_ready(service)):
        raise ApiError(
            503, "not_ready", "the store cannot be read, has another format version, or no upload can be taken"
        )
    return {"status": "ready"}


def _is_ready(service: Service) -> bool:
    try:
        service.store.open(create=False)
        with tempfile.TemporaryFile(dir=service.settings.temp_dir) as file:
            file.write(b"x")
    except (BallastError, OSError) as error:
        log_event(logging.WARNING, "not ready", error)
        return False
    return True


@router.get("/metrics", response_class=Response, responses={200: _METRICS_TEXT, **GUARDED})
def metrics(request: Request, tenant: AdminTenant) -> Response:
    """Counts and times of this process for Prometheus; needs the scope `admin` where there are keys."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    """The endpoints as a page that loads nothing from elsewhere."""
    document = request.app.openapi()
    rows = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(_first_line(operation))}</td></tr>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    page = _PAGE.format(title=escape(request.app.title), description=escape(request.app.description), rows=rows)
    return HTMLResponse(page)


def _first_line(operation: dict[str, Any]) -> str:
    text: str = operation.get("description") or operation.get("summary") or ""
    return text.split("\n")[0]
