"""GET /v1/usage: what every tenant did, for the operator."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.auth import GUARDED, AdminTenant
from api.errors import ApiError
from api.schemas import UsagePage, UsageTotals
from api.service import Service, service_of
from curator.store.usage import Event, totals

router = APIRouter(prefix="/v1/usage", tags=["usage"], responses=GUARDED)

DEFAULT_PAGE_EVENTS = 100
DEFAULT_SPAN = timedelta(days=30)
FIRST = datetime(1970, 1, 1, tzinfo=UTC)

MOMENT = r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?)?$"

Tenant = Annotated[str | None, Query(max_length=64, description="only this tenant's")]
Since = Annotated[str | None, Query(pattern=MOMENT, description="from this moment on; by default the last 30 days")]
Until = Annotated[str | None, Query(pattern=MOMENT, description="up to but without this moment; by default now")]


@router.get("", response_model=UsagePage)
def list_usage(
    request: Request,
    asking: AdminTenant,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int, Query(ge=1, description="events of one page, at most the service's bound")
    ] = DEFAULT_PAGE_EVENTS,
    after: Annotated[str, Query(max_length=32, description="id of the last event of the page before")] = "",
) -> dict[str, Any]:
    """Events of all tenants in order of time; needs the scope `admin`. Moments without an offset are UTC."""
    service = service_of(request)
    bound = min(limit, service.settings.max_page_rows)
    found = (event for event in _events(service, since, until, after) if tenant in (None, event["tenant"]))
    page = list(islice(found, bound + 1))
    return {"events": page[:bound], "next_after": page[bound - 1]["event_id"] if len(page) > bound else None}


@router.get("/totals", response_model=UsageTotals)
def sum_usage(
    request: Request, asking: AdminTenant, tenant: Tenant = None, since: Since = None, until: Until = None
) -> dict[str, Any]:
    """Events, rows and bytes by tenant and action; needs the scope `admin`. Moments without an offset are UTC."""
    found = (event for event in _events(service_of(request), since, until) if tenant in (None, event["tenant"]))
    return {"totals": totals(found)}


def _events(service: Service, since: str | None, until: str | None, after: str = "") -> Iterator[Event]:
    end = _moment(until, "until") or datetime.now(UTC) + timedelta(seconds=1)
    start = _moment(since, "since") or max(end, FIRST + DEFAULT_SPAN) - DEFAULT_SPAN
    return service.usage.read(start, end, after)


def _moment(text: str | None, name: str) -> datetime | None:
    """A moment of ISO 8601; without an offset it is UTC. Raises ApiError 422 for a day that there is not."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ApiError(422, "bad_parameters", f"{name}: {error}", details=[{"pointer": f"/query/{name}"}]) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
