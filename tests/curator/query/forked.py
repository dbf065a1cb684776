"""A module that a fork server runs in tests: each child says what it has from its parent."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from curator.query.fork_server import is_single_threaded, serve
from curator.query.sandbox_process import Views

VIEWS = Views()


def work() -> int:
    """Answer a line of text with what this process is."""
    line = sys.stdin.buffer.readline().decode()
    links: list[str] = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            links.append(str(path.readlink()))
    found = {
        "line": line,
        "pid": os.getpid(),
        "sockets": [link for link in links if link.startswith("socket:")],
        "environment": sorted(os.environ),
        "alone": is_single_threaded(),
        "has_views": VIEWS.connection is not None,
    }
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    serve(int(sys.argv[1]), VIEWS.prepare, work)
