"""Signing in with an API key, and out."""

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.page.frame import PageRoute, page, redirect
from api.page.session import KEY_COOKIE, Anybody, drop_key, read_form, set_cookie
from api.service import service_of
from api.telemetry import note

router = APIRouter(route_class=PageRoute)


@router.get("/sign-in")
async def show(request: Request, visit: Anybody, next: str = "/") -> Response:  # noqa: A002
    """The form for a key."""
    return page(request, "sign_in.html", wanted=_own_path(next), problem=None)


@router.post("/sign-in")
async def sign_in(request: Request, visit: Anybody) -> Response:
    """Keep a valid key in the browser's cookie."""
    fields = await read_form(request)
    key, wanted = fields.get("key", "").strip(), _own_path(fields.get("wanted", "/"))
    service = service_of(request)
    client = request.client.host if request.client is not None else ""
    try:
        principal = await run_in_threadpool(service.keyring.identify, key, client)
    except ApiError as error:
        problem = "This key opens nothing: it is mistyped, revoked or over its time." if error.status == 401 else None
        return page(request, "sign_in.html", status=error.status, wanted=wanted, problem=problem or error.message)
    note(tenant=principal.tenant, key_id=principal.key_id)
    response = redirect(request, wanted)
    set_cookie(request, response, KEY_COOKIE, key)
    return response


@router.post("/sign-out")
async def sign_out(request: Request, visit: Anybody) -> Response:
    """Forget the key."""
    await read_form(request)
    response = redirect(request, "/sign-in")
    drop_key(request, response)
    return response


def _own_path(wanted: str) -> str:
    """A path of this service: never another site's address."""
    fits = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted and wanted.isprintable()
    return wanted if fits else "/"
