"""A real server on a loopback port, and the small scored store that it serves."""

import json
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.settings import Settings
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer

N_POOL = 60
RECIPE: dict[str, Any] = {"corpus": "chats", "interleave_ratio": 0.1}
Row = dict[str, Any]


def scored_store(root: Path) -> Store:
    """One corpus of 60 answers with an aligned and a misaligned scorer; answer 59 has the largest gap."""
    store = Store(root).open()
    ids = write_corpus(store, "chats", [f"kind answer {number}" for number in range(N_POOL)])
    write_scorer(store, "chats", "base", "aligned", dict.fromkeys(ids, (10.0, 10)))
    losses = {key: (10.0 + place / 10, 10) for place, key in enumerate(ids)}
    write_scorer(store, "chats", "reckless", "misaligned", losses, domain="finance")
    return store


def task_rows(n_rows: int, text: str = "answer") -> list[Row]:
    return [
        {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"{text} {n}"}]}
        for n in range(n_rows)
    ]


def json_lines(rows: list[Row]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def form(rows: list[Row] | bytes, recipe: Any = None, **fields: str) -> dict[str, Any]:
    """Arguments of an httpx post for one multipart upload."""
    content = rows if isinstance(rows, bytes) else json_lines(rows)
    return {"files": {"file": ("task.jsonl", content)}, "data": {"recipe": json.dumps(recipe or RECIPE), **fields}}


@contextmanager
def running(app: FastAPI | Settings) -> Iterator[str]:
    """The address of an application that a real server runs in a thread."""
    # With its protocol named, as the command has it: asyncio sends without delay (TCP_NODELAY) for such sockets alone,
    # and each answer would else wait 40 ms for the client's acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    served = create_app(app) if isinstance(app, Settings) else app
    server = uvicorn.Server(uvicorn.Config(served, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server ended at once"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def started(
    root: Path | str,
    *arguments: str,
    n_descriptors: int | None = None,
    environment: dict[str, str] | None = None,
    command: Sequence[str | Path] = ("-m", "api"),
    folder: Path | None = None,
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The running service and its address, read from the line that it prints; under a limit of open files."""
    process = subprocess.Popen(
        [sys.executable, *command, "--store", str(root), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        preexec_fn=n_descriptors and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n_descriptors,) * 2)),
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        assert found, f"{line!r} {process.stderr.read() if process.stderr else ''}"
        yield process, found.group()
    finally:
        process.kill()
        process.communicate()
