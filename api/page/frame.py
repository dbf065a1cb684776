"""How every view is rendered: templates with escaped text, the headers of a page, and errors as pages.

No view has a script or a style of its own: the policy below forbids it, whatever a text of a user holds.
"""

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.errors import handle_http_error, handle_product_error, handle_validation_error
from api.page import text
from api.page.session import SignInError, keep_form_cookie, visit_of
from api.service import service_of
from curator.errors import BallastError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
TITLES = {403: "Not with this key", 404: "Not here", 413: "Too large", 422: "Refused", 429: "Too many", 503: "Busy"}

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("api.page"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "count": text.count,
    "figure": text.figure,
    "percent": text.percent,
    "shown": text.shown,
    "clipped": text.clipped,
    "moment": text.moment,
}


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A view as HTML. `values` are what the template names; text in them is escaped by it."""
    visit = visit_of(request)
    html = _TEMPLATES.get_template(template).render(
        **values,
        visit=visit,
        url=lambda path, **query: address(request, path, **query),
        here=request.url.path.removeprefix(root_of(request)),
        version=request.app.version,
        fragment="hx-request" in request.headers,
        static=static_address(request),
    )
    response = HTMLResponse(html, status, headers=HEADERS)
    if visit is not None:
        keep_form_cookie(request, response, visit)
    return response


def root_of(request: Request) -> str:
    """The prefix under which a proxy offers the service, '' without one."""
    return service_of(request).settings.root_path


def address(request: Request, path: str, **query: Any) -> str:
    """A link to a view: its path, whose parts are quoted here, and those of the query that have a value."""
    given = [(name, value) for name, value in query.items() if value not in (None, "", [], ())]
    asked = urlencode(given, doseq=True)
    return root_of(request) + quote(path) + (f"?{asked}" if asked else "")


def static_address(request: Request) -> Callable[[str], str]:
    """Links to files of the page by name; they change with the file, so that browsers may keep them."""
    from api.page.static import FILES

    return lambda name: f"{root_of(request)}/static/{name}?v={FILES[name].sha256[:12]}"


def redirect(request: Request, path: str, *, fragment: str = "", **query: Any) -> Response:
    """Answer a form: the view to look at next, at the part that `fragment` names."""
    where = address(request, path, **query) + (f"#{fragment}" if fragment else "")
    return RedirectResponse(where, 303, headers=HEADERS)


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PageRoute(APIRoute):
    """A route whose errors are pages, with the status and the words that the API gives them."""

    def get_route_handler(self) -> Handler:
        """The handler, and how its errors are answered."""
        handler = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handler(request)
            except SignInError:
                path = request.url.path.removeprefix(root_of(request))
                wanted = path if request.method == "GET" and path != "/" else None
                return redirect(request, "/sign-in", next=wanted)
            except BallastError as error:
                return error_page(request, await handle_product_error(request, error))
            except RequestValidationError as error:
                return error_page(request, await handle_validation_error(request, error))
            except HTTPException as error:
                return error_page(request, await handle_http_error(request, error))

        return shown


def error_page(request: Request, answer: Response) -> Response:
    """The API's error body as a page."""
    error: Mapping[str, Any] = json.loads(bytes(answer.body))["error"]
    title = TITLES.get(answer.status_code, "Something is wrong")
    details = [text.detail(item) for item in error["details"]]
    status = answer.status_code
    shown = page(request, "error.html", status=status, title=title, error=error, details=details, status_code=status)
    if "retry-after" in answer.headers:
        shown.headers["Retry-After"] = answer.headers["retry-after"]
    return shown
