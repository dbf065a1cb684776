"""The one error body, and which status each error has.

`{"error": {"code", "message", "details": [...]}}`, with `"truncated": true` beside them when `details` was cut.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from api.telemetry import log_event
from curator.console import as_typed
from curator.errors import (
    BadInputError,
    BadRowsError,
    BallastError,
    MissingDependencyError,
    MissingError,
    StoreError,
    TooManyRowsError,
    UnpackedTooLargeError,
    is_full,
    is_out_of_service,
)
from curator.recipe.problems import problem_line, problems_of

BUSY_RETRY_S = 5
_HTTP_CODES = {404: "unknown_route", 405: "method_not_allowed"}


class ApiError(BallastError, ValueError):
    """An answer that belongs to HTTP alone (too large, wrong content type, busy, out of range)."""

    code = "bad_request"

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Sequence[object] = (),
        truncated: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, details=details)
        self.status = status
        self.code = code
        self.truncated = truncated
        self.headers = dict(headers or {})


def error_response(
    status: int,
    code: str,
    message: str,
    details: Sequence[object] = (),
    *,
    truncated: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The one error body as a response."""
    body = error_body(code, message, details, truncated=truncated)
    return Response(body, status, headers=dict(headers or {}), media_type="application/json")


def error_body(code: str, message: str, details: Sequence[object] = (), *, truncated: bool = False) -> bytes:
    """The one error body."""
    error: dict[str, Any] = {"code": code, "message": as_typed(message), "details": list(details)}
    if truncated:
        error["truncated"] = True
    return orjson.dumps({"error": error}, default=str)


def internal_error(request_id: str) -> Response:
    """The answer to a mistake of ours: no reason, only the id under which the log tells it."""
    message = "the service failed; quote the request id when you report it"
    return error_response(500, "internal", message, [{"request_id": request_id}])


def status_of(error: BallastError) -> int:
    """The HTTP status of an error of the product; 500 for what the caller cannot mend."""
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, MissingError):
        return 404
    if isinstance(error, UnpackedTooLargeError | TooManyRowsError):
        return 413
    if isinstance(error, BadInputError):
        return 422
    if isinstance(error, MissingDependencyError):
        return 501
    return 500


def system_failure(error: Exception) -> Response | None:
    """The answer to a failure of this machine or of the store's; None for any other error."""
    if is_full(error):
        log_event(logging.ERROR, "no space left", error)
        return error_response(507, "storage_full", "the service has no space left: try again later")
    if is_out_of_service(error):
        log_event(logging.ERROR, "out of service", error)
        message = "the service, or its storage, cannot do this now: try again later"
        return error_response(503, "unavailable", message, headers={"Retry-After": str(BUSY_RETRY_S)})
    return None


async def handle_system_error(request: Request, error: Exception) -> Response:
    """A failure of the system that passes by itself or with help: a full disk, no descriptors; others are ours."""
    answer = system_failure(error)
    if answer is None:
        raise error
    return answer


async def handle_product_error(request: Request, error: Exception) -> Response:
    """Our own errors. Failures of the store are logged and answered without their text, which names paths."""
    assert isinstance(error, BallastError)
    answer = system_failure(error)
    if answer is not None:
        return answer
    status = status_of(error)
    if isinstance(error, StoreError) or status == 500:
        raise error  # the outermost layer logs it and answers as internal
    root: str = request.app.state.service.store.url("")
    message = error.message.replace(root, "(store)")
    if isinstance(error, ApiError):
        return error_response(
            status, error.code, message, error.details, truncated=error.truncated, headers=error.headers
        )
    if isinstance(error, BadRowsError):  # of a data set that was not read to its end: the list never has all
        bound = request.app.state.service.settings.max_bad_rows
        return error_response(status, error.code, message, error.details[:bound], truncated=True)
    return error_response(status, error.code, message, error.details)


async def handle_validation_error(request: Request, error: Exception) -> Response:
    """Parameters of a path or query that do not fit; the values themselves are not repeated."""
    assert isinstance(error, RequestValidationError)
    details = problems_of(error, show_values=False)
    return error_response(422, "bad_parameters", problem_line(details), details)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown routes and wrong methods."""
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "bad_request")
    headers = dict(error.headers or {})
    if error.status_code == 404:
        message = "there is no such route; /openapi.json lists what there is"
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
        message = f"this route does not take that method; it takes {headers['Allow']}"
    else:
        message = str(error.detail)
    return error_response(error.status_code, code, message, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """Every method of the path's template; the router itself names those of one route alone.

    A path may fit several templates (`/preview` and `/{mix_id}`): the first one, as for the router.
    """
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    template = next((route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE), None)
    methods = {method for route in routes if route.path == template for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
