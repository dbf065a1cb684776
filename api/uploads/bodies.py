"""Reading a request's body within a bound, and only once it is known who asks.

A route with a declared body would have the framework read the whole of it, whatever its size, before the key is
looked at: such routes take the request itself and read here.
"""

from collections.abc import AsyncIterator
from typing import Any, TypeVar

from anyio import move_on_after
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.errors import ApiError
from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.recipe.problems import problem_line, problems_of

MAX_ASKED_BYTES = 2**20  # of a statement or a query's parameters: a statement has at most 50,000 characters
DRAIN_S = 10.0
M = TypeVar("M", bound=BaseModel)


def asked_body(model: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that reads a `model` with `read_asked`, for the OpenAPI document."""
    return {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}


async def read_asked(request: Request, model: type[M], max_bytes: int) -> M:
    """What a small JSON body asks.

    Raises ApiError 415 for another content type or a packed body, 413 beyond `max_bytes`, 400 for no JSON, 422 for
    another shape.
    """
    check_encoding(request)
    content_type, _ = parse_options_header(request.headers.get("content-type"))
    if content_type != b"application/json":
        raise ApiError(415, "unsupported_content_type", "send the body as application/json")
    chunks, body = request.stream(), bytearray()
    try:
        reported = request.headers.get("content-length", "")
        if reported.isdecimal() and int(reported) > max_bytes:
            raise too_large(max_bytes, "send a shorter document")
        async for chunk in bounded(chunks, max_bytes, "send a shorter document"):
            body += chunk
    except ApiError:
        await drain(request, chunks)
        raise
    return await run_in_threadpool(_parsed, bytes(body), model)


async def bounded(chunks: AsyncIterator[bytes], max_bytes: int, remedy: str) -> AsyncIterator[bytes]:
    """The body's chunks; raises ApiError 413 beyond `max_bytes`."""
    n_bytes = 0
    async for chunk in chunks:
        n_bytes += len(chunk)
        if n_bytes > max_bytes:
            raise too_large(max_bytes, remedy)
        yield chunk


def too_large(max_bytes: int, remedy: str) -> ApiError:
    """The refusal of a body beyond its bound."""
    return ApiError(413, "too_large", f"the body is over the bound of {max_bytes} bytes: {remedy}")


async def drain(request: Request, chunks: AsyncIterator[bytes]) -> None:
    """Before an answer after which the connection is closed: throw away what the client is still sending, for a while.

    It would otherwise meet a closed connection instead of the answer. On a connection that stays open the answer is
    sent at once, and the server throws the rest away. A client that waits for `100 Continue` is sending nothing.
    """
    if request.headers.get("connection", "").lower() != "close" or "expect" in request.headers:
        return
    with move_on_after(DRAIN_S):
        async for _ in chunks:
            pass


def check_encoding(request: Request) -> None:
    """Raises ApiError 415 for a body that is packed as a whole."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        message = "send the body without Content-Encoding; a file in it may be packed as .gz or .zst"
        raise ApiError(415, "unsupported_content_encoding", message, headers={"Accept-Encoding": "identity"})


def _parsed(body: bytes, model: type[M]) -> M:
    try:
        return model.model_validate(decode(body, 0))
    except UndecodableError as error:
        raise ApiError(400, "malformed_json", f"the body is not JSON: {error.problem.message}") from error
    except ValidationError as error:
        details = problems_of(error, inside="body", show_values=False)
        raise ApiError(422, "bad_parameters", problem_line(details), details=details) from error
