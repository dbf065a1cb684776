"""The files of the page: its style, its one script, and htmx as its makers published it.

`VENDORED` states what came from elsewhere, with the hash that a test recomputes.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.errors import ApiError
from api.page.frame import HEADERS, PageRoute
from api.page.session import Anybody

router = APIRouter(route_class=PageRoute)

# From the npm package htmx.org: its file dist/htmx.min.js, unchanged, and its licence (Zero-Clause BSD).
VENDORED = {
    "htmx.min.js": ("htmx.org", "4.0.1", "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"),
    "htmx.LICENSE.txt": ("htmx.org", "4.0.1", "d3d2456f76414f2456104660ebd65aff1c04cd7966b942bdabd63f3cdb316a38"),
}
_TYPES = {"css": "text/css", "js": "text/javascript", "txt": "text/plain", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class StaticFile:
    """A file of the package as it is sent."""

    data: bytes
    sha256: str
    media_type: str


def _read(name: str) -> StaticFile:
    data = resources.files("api.page").joinpath("static", name).read_bytes()
    return StaticFile(data, hashlib.sha256(data).hexdigest(), f"{_TYPES[name.rsplit('.', 1)[1]]}; charset=utf-8")


FILES = {name: _read(name) for name in ("page.css", "page.js", "icon.svg", *VENDORED)}


@router.get("/static/{name}")
async def get_static(request: Request, visit: Anybody, name: str) -> Response:
    """A file of the page by its name."""
    if name not in FILES:
        raise ApiError(404, "not_found", "there is no such file")
    file = FILES[name]
    headers = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable", "ETag": f'"{file.sha256}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers=headers, media_type=file.media_type)
