"""An S3-compatible bucket on loopback for tests, and a proxy before it that loses chosen requests."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from s3fs import S3FileSystem

# moto keeps its buckets in memory; a process of its own keeps its warnings out of the tests'.
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@contextmanager
def bucket_server() -> Iterator[str]:
    """A running moto server with one bucket named `ballast`; yields its URL."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url.startswith("http://"), "moto did not start"
        put(url, "/ballast")
        # fsspec keeps a client for each set of options, and the address is none of them: not one of a server before.
        S3FileSystem.clear_instance_cache()
        try:
            yield url
        finally:
            server.kill()


def put(url: str, path: str) -> None:
    """An empty PUT, which makes a bucket."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("PUT", path)
    assert connection.getresponse().status == 200
    connection.close()


def environment(url: str) -> dict[str, str]:
    """Variables under which botocore, and so our processes, find the server."""
    return {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": url, "BALLAST_PROGRESS": "0", "HF_HUB_OFFLINE": "1"}


@dataclass
class Losses:
    """Which requests the proxy loses: of those with this method whose path holds `part`, those numbered in `which`.

    `how` is "before" (never reaches the server), "after" (done, but its answer is lost) or "503". `seen` counts the
    requests that fit, `lost` those lost.
    """

    method: str = "PUT"
    part: str = ""
    which: frozenset[int] = frozenset()
    how: str = "before"
    seen: int = 0
    lost: int = 0
    every: bool = False
    lines: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def loses(self, method: str, path: str) -> bool:
        with self.lock:
            self.lines.append(f"{method} {path}")
            if method != self.method or self.part not in path:
                return False
            self.seen += 1
            hit = self.every or self.seen in self.which
            self.lost += hit
            return hit


@contextmanager
def losing_proxy(target: str, losses: Losses) -> Iterator[str]:
    """A proxy before `target` that loses requests as configured; yields its URL."""
    netloc = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else bodies wait 40 ms for the headers' acknowledgement

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunked()
            loses = losses.loses(self.command, self.path)
            if loses and losses.how == "before":
                self.close_connection = True
                return
            if loses and losses.how == "503":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = HTTPConnection(netloc, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if loses:
                self.close_connection = True
                return
            self._answer(answer, data)

        def _chunked(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return b""
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)

        def _answer(self, answer: Any, data: bytes) -> None:
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
