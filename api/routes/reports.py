"""GET /v1/reports: reports of comparisons and training runs that the operator shows."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.errors import ApiError
from api.schemas import ReportList, ReportView, errors
from api.service import service_of
from api.tenancy.auth import GUARDED, holding_any
from curator.errors import MissingError

reading = Depends(holding_any("mix", "sql", "audit"))
router = APIRouter(prefix="/v1/reports", tags=["reports"], responses=GUARDED, dependencies=[reading])
PICTURE = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


@router.get("", response_model=ReportList)
def list_reports(request: Request) -> dict[str, Any]:
    """Reports in the folder of the setting `reports`, the newest first; none without it."""
    return {"reports": [asdict(report) for report in service_of(request).reports.reports()]}


@router.get("/{name:path}", response_model=ReportView, responses={200: PICTURE, **errors(404, 422)})
def get_report(request: Request, name: Annotated[str, "path below the folder"]) -> Any:
    """A report, or one of its pictures: the name tells, ending in .md or .png."""
    reports = service_of(request).reports
    try:
        if name.endswith(".png"):
            return Response(
                reports.picture(name), media_type="image/png", headers={"Cache-Control": "private, no-cache"}
            )
        return asdict(reports.document(name))
    except MissingError as error:
        raise ApiError(404, "not_found", error.message) from error
