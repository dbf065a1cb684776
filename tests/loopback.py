"""HTTP servers on a loopback address, for tests of what talks to one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that does not print what it serves: subclasses answer every method in `serve`. `server` has the state
    that `serving` was given."""

    server: Any

    def serve(self) -> None:
        """Answer one request."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Any method."""
        self.serve()

    do_POST = do_DELETE = do_GET

    def body(self) -> bytes:
        """What was sent with the request."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, document: Any, status: int = 200) -> None:
        """Answer with JSON."""
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class ChatHandler(QuietHandler):
    """A handler of `POST /v1/chat/completions` in `serve`; `GET /v1/models` lists `server.models`, nothing without."""

    def do_GET(self) -> None:
        """The list of models."""
        self.answer({"object": "list", "data": getattr(self.server, "models", [])})


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **state: Any) -> Iterator[Any]:
    """A running server with `url` (no path) and the given state as attributes; at the end it has ended."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    for name, value in state.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
