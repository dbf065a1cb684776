"""Reports of comparisons and training runs, with their pictures."""

import posixpath

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.page.frame import HEADERS, PageRoute, page
from api.page.markdown import blocks
from api.page.session import AnyVisit
from api.service import service_of
from curator.errors import MissingError

router = APIRouter(route_class=PageRoute)


@router.get("/reports")
async def show_reports(request: Request, visit: AnyVisit) -> Response:
    """The reports that the operator shows."""
    service = service_of(request)
    found = await run_in_threadpool(service.reports.reports)
    return page(request, "reports.html", reports=found, is_set=service.reports.root is not None, twin="/v1/reports")


@router.get("/reports/{name:path}")
async def show_report(request: Request, visit: AnyVisit, name: str) -> Response:
    """A report as a page, or one of its pictures."""
    reports = service_of(request).reports
    try:
        if name.endswith(".png"):
            data = await run_in_threadpool(reports.picture, name)
            return Response(data, media_type="image/png", headers={**HEADERS, "Cache-Control": "private, no-cache"})
        found = await run_in_threadpool(reports.document, name)
    except MissingError as error:
        raise ApiError(404, "not_found", error.message) from error

    def locate(target: str) -> str | None:
        """The report or picture of a relative address, as it is named here."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        return path if reports.has(path) else None

    shown = await run_in_threadpool(blocks, found.text, locate)
    return page(request, "report.html", report=found, blocks=shown, twin=f"/v1/reports/{name}")
