"""GET /v1/usage: what every tenant did, for the operator."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from api.errors import ApiError
from api.schemas import UsagePage, UsageTotals
from api.service import Service, service_of
from api.tenancy.auth import GUARDED, AdminTenant
from curator.store.usage import Event, totals

router = APIRouter(prefix="/v1/usage", tags=["usage"], responses=GUARDED)

DEFAULT_PAGE_EVENTS = 100
DEFAULT_SPAN = timedelta(days=30)
FIRST = datetime(1970, 1, 1, tzinfo=UTC)

MOMENT = r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?)?$"


class Span(BaseModel):
    """Which events are asked for: of one tenant or all, between two moments."""

    tenant: str | None = Field(default=None, max_length=64, description="only this tenant's")
    since: str | None = Field(
        default=None, pattern=MOMENT, description="from this moment on; by default the last 30 days"
    )
    until: str | None = Field(default=None, pattern=MOMENT, description="up to but without this moment; by default now")

    def events(self, service: Service, after: str = "") -> Iterator[Event]:
        """The events, oldest first; after the one with this id."""
        end = _moment(self.until, "until") or datetime.now(UTC) + timedelta(seconds=1)
        start = _moment(self.since, "since") or max(end, FIRST + DEFAULT_SPAN) - DEFAULT_SPAN
        found = service.usage.read(start, end, after)
        return (event for event in found if self.tenant in (None, event["tenant"]))


class Page(Span):
    """The same, by pages."""

    limit: int = Field(default=DEFAULT_PAGE_EVENTS, ge=1, description="events of one page, at most the service's bound")
    after: str = Field(default="", max_length=32, description="id of the last event of the page before")


@router.get("", response_model=UsagePage)
def list_usage(request: Request, asking: AdminTenant, query: Annotated[Page, Query()]) -> dict[str, Any]:
    """Events of all tenants in order of time; needs the scope `admin`. Moments without an offset are UTC."""
    service = service_of(request)
    bound = min(query.limit, service.settings.max_page_rows)
    page = list(islice(query.events(service, query.after), bound + 1))
    return {"events": page[:bound], "next_after": page[bound - 1]["event_id"] if len(page) > bound else None}


@router.get("/totals", response_model=UsageTotals)
def sum_usage(request: Request, asking: AdminTenant, query: Annotated[Span, Query()]) -> dict[str, Any]:
    """Events, rows and bytes by tenant and action; needs the scope `admin`. Moments without an offset are UTC."""
    return {"totals": totals(query.events(service_of(request)))}


def _moment(text: str | None, name: str) -> datetime | None:
    """A moment of ISO 8601; without an offset it is UTC. Raises ApiError 422 for a day that there is not."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ApiError(422, "bad_parameters", f"{name}: {error}", details=[{"pointer": f"/query/{name}"}]) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
