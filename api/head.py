"""HEAD wherever there is GET (RFC 9110, section 9.3.2): the same answer, without its body."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A download of a mix has a HEAD of its own, which need not make the file.
_OWN = re.compile(r"/v1/mixes/[^/]+/data")


class HeadAsGet:
    """ASGI middleware: a HEAD request runs as GET, and its body is dropped."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or _OWN.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        inner = dict(scope, method="GET")
        try:
            await self.app(inner, receive, send_without_body)
        finally:
            scope.update(item for item in inner.items() if item[0] not in scope)  # the layers around read the route
