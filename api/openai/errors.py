"""Errors in OpenAI's shape, on its paths only: `{"error": {"message", "type", "param", "code", "details"}}`.

Everything behind these paths refuses as the rest of the service does; `OpenAIErrors` translates what leaves. It is the
outermost layer, so that the answers of all others are translated too; log and metrics have the service's own status.
"""

import re
from contextlib import suppress
from typing import Any

import orjson
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError

_PATH = re.compile(r"/v1/(files|fine_tuning|models|uploads)(/|$)")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_AS_400 = frozenset({415, 422})  # the client's BadRequestError, which scripts catch
_CODES = {"unauthorized": "invalid_api_key", "bad_parameters": "invalid_value", "unknown_part": "unknown_parameter"}
# The client repeats 408, 409, 429 and 5xx; of these the ones that no repetition changes.
_FINAL = frozenset({501, 507})
_PASSING = frozenset({408, 429})


def refused(
    status: int, code: str, message: str, param: str | None = None, details: list[Any] | None = None
) -> ApiError:
    """A refusal of this form, with the parameter that is at fault."""
    return ApiError(status, code, message, details=[{"param": param}, *(details or [])])


class OpenAIErrors:
    """ASGI middleware: error bodies of the OpenAI paths are put into OpenAI's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _PATH.match(_path(scope)):
            await self.app(scope, receive, send)
            return
        held: Message | None = None
        body = bytearray()

        async def send_translated(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and message["status"] >= 400:
                held = message
            elif held is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await _send_error(send, held, bytes(body), scope["method"] == "HEAD")

        await self.app(scope, receive, send_translated)


def _path(scope: Scope) -> str:
    root: str = scope["app"].root_path if "app" in scope else scope.get("root_path", "")
    return str(scope["path"]).removeprefix(root)


async def _send_error(send: Send, start: Message, body: bytes, is_head: bool) -> None:
    status = 400 if start["status"] in _AS_400 else start["status"]
    with suppress(orjson.JSONDecodeError, KeyError, TypeError):  # a HEAD request's answer has no body
        body = orjson.dumps({"error": translated(status, orjson.loads(body)["error"])})
    start = {**start, "status": status}
    headers = MutableHeaders(scope=start)
    if not is_head:
        headers["content-length"] = str(len(body))
    if (status < 500 and status not in _PASSING) or status in _FINAL:
        headers["x-should-retry"] = "false"
    await send(start)
    await send({"type": "http.response.body", "body": b"" if is_head else body})


def translated(status: int, error: dict[str, Any]) -> dict[str, Any]:
    """The service's error in OpenAI's shape; `details` and `truncated` stay beside its four fields."""
    details = error.get("details", [])
    param = None
    if details and isinstance(details[0], dict):
        if set(details[0]) == {"param"}:
            param, details = details[0]["param"], details[1:]
        elif "line" not in details[0] and str(details[0].get("pointer", "")).startswith("/"):
            param = _param(details[0]["pointer"])
    rest = {"truncated": True} if error.get("truncated") else {}
    code = _CODES.get(error["code"], error["code"])
    return {
        "message": error["message"],
        "type": _type(status),
        "param": param,
        "code": code,
        "details": details,
        **rest,
    }


def _param(pointer: str) -> str | None:
    """The parameter that a pointer means, such as hyperparameters.n_epochs; None for the request as a whole.

    Its first part is where it stands (body, query, path); what is no name says which type was tried last.
    """
    names = [part for part in pointer.split("/")[2:] if _NAME.fullmatch(part)]
    return ".".join(names) or None


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
