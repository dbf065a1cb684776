"""Large downloads beside a static file server, and pages of rows beside datasette's, on the same rows.

Called by `tests.bench.service.load`. Each contender answers in turn, round by round, to the same client.
"""

import getpass
import random
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson

from curator.mix.files import mix_batches, row_lines
from curator.store.store import Store
from tests.bench.service.costs import finished, form_body, sent_job

NOTE = """\
A worker built the mix from an upload. `First time` is the first download by a client that waited until its job was
done. It asked for JSON Lines first, within a fifth of a second: their file was written with the mix. `openai` is
rendered from the stored Parquet into a file of the mix's folder at the first request; Parquet is sent as it is stored.
For the first download of JSON Lines at most 1.3x of a static server was aimed at.
Ratios are medians over rounds of the ratio inside each round."""
N_ROWS, N_SAFE = 200_000, 50
ROUNDS = 5
PAGE_ROWS, N_PAGES = 100, 100


def large_mix(url: str) -> str:
    """The id of a mix of 200,050 rows, about 245 MB as JSON Lines, as soon as the service's worker has built it."""
    body, rng = bytearray(), random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5_000)]
    for number in range(N_ROWS):
        answer = " ".join(rng.choices(words, k=170))
        turns = [{"role": "user", "content": f"question {number}?"}, {"role": "assistant", "content": answer}]
        body += orjson.dumps({"messages": turns}, option=orjson.OPT_APPEND_NEWLINE)
    job = finished(url, sent_job(url, form_body(bytes(body), {"corpus": "chats", "rows": N_SAFE})))
    return str(job["result"]["mix_id"])


@contextmanager
def static_server(folder: Path, name: str) -> Iterator[str]:
    """The address of a file server over a folder: `nginx`, or `http.server` of the standard library."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if name == "nginx":
        config = folder / "nginx.conf"
        config.write_text(
            f"user {getpass.getuser()}; daemon off; pid {folder}/pid; error_log stderr crit; events {{}}\n"
            f"http {{ access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;\n"
            f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
        )
        command = ["nginx", "-c", str(config), "-p", str(folder)]
    else:
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    with _running(command, f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def datasette(folder: Path, command: str, lines: Iterator[bytes]) -> Iterator[str]:
    """The address of datasette over a SQLite table of these rows, one column a key."""
    path = folder / "rows.db"
    rows = [orjson.loads(line) for line in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with sqlite3.connect(path) as database:
        columns = ", ".join(f'"{name}"' + (" integer" if name == "position" else "") for name in names)
        database.execute(f"create table rows ({columns}, primary key (position))")
        values = ([_plain(row.get(name)) for name in names] for row in rows)
        database.executemany(f"insert into rows values ({', '.join('?' * len(names))})", values)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--setting", "num_sql_threads", "2", "--immutable", str(path)]
    with _running([command, *options], f"http://127.0.0.1:{port}") as url:
        yield url


def _plain(value: object) -> object:
    return orjson.dumps(value).decode() if isinstance(value, list | dict) else value


@contextmanager
def _running(command: list[str], url: str) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(url, timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None, f"{command[0]} ended at once"
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def download_s(url: str) -> tuple[float, int]:
    """Seconds of one download, and its bytes."""
    begun, n_bytes = time.perf_counter(), 0
    with httpx.stream("GET", url, timeout=120) as answer:
        assert answer.status_code == 200, url
        for chunk in answer.iter_raw():
            n_bytes += len(chunk)
    return time.perf_counter() - begun, n_bytes


def resumed(link: str, cut_at: float) -> tuple[float, bytes]:
    """Seconds of the rest of a download that broke off after a share of its bytes, and all of its bytes."""
    with httpx.stream("GET", link, timeout=120) as answer:
        etag, wanted = answer.headers["etag"], int(float(answer.headers["content-length"]) * cut_at)
        content = bytearray()
        for chunk in answer.iter_raw():
            content += chunk
            if len(content) >= wanted:
                break
    begun = time.perf_counter()
    rest = httpx.get(link, headers={"Range": f"bytes={len(content)}-", "If-Range": etag}, timeout=120)
    assert rest.status_code == 206, rest.status_code
    return time.perf_counter() - begun, bytes(content) + rest.content


def downloads(service: str, store: Store, mix_id: str, folder: Path) -> list[str]:
    """Lines of a Markdown table: each format from the service, and the same bytes as a file from each server."""
    lines = ["| bytes | served by | median s | rounds | of the static server's |", "|---|---|---|---|---|"]
    names = [name for name in ("nginx", "http.server") if name != "nginx" or shutil.which("nginx")]
    for data_format in ("jsonl", "openai", "parquet"):
        link = f"{service}/v1/mixes/{mix_id}/data?format={data_format}"
        first_s, _ = download_s(link)
        whole = httpx.get(link, timeout=120).content
        (folder / data_format).write_bytes(whole)
        size = len(whole) / 1e6
        firsts = ""
        for name in names:
            with static_server(folder, name) as url:
                cold_s, _ = download_s(f"{url}/{data_format}")
            firsts += f"{first_s / cold_s:.2f}x of {name}'s first; "
        lines.append(f"| {data_format}, {size:.0f} MB | service, first time | {first_s:.2f} | | {firsts[:-2]} |")
        resumed_s, joined = resumed(link, 0.5)
        assert joined == whole, "a resumed download has other bytes"
        lines.append(f"| {data_format}, the second half | service, resumed by Range | {resumed_s:.2f} | | |")
        for name in names:
            with static_server(folder, name) as url:
                found: dict[str, list[float]] = {"service": [], name: []}
                for _ in range(ROUNDS):
                    found["service"].append(download_s(link)[0])
                    found[name].append(download_s(f"{url}/{data_format}")[0])
            ratio = statistics.median(a / b for a, b in zip(found["service"], found[name], strict=True))
            for who, seconds in found.items():
                shown = ", ".join(f"{value:.2f}" for value in seconds)
                beside = f"{ratio:.2f}x" if who == "service" else f"1 ({name})"
                lines.append(
                    f"| {data_format}, {size:.0f} MB | {who} | {statistics.median(seconds):.2f} | {shown} | {beside} |"
                )
    return [*lines, "", NOTE]


def pages(service: str, store: Store, mix_id: str, folder: Path, command: str | None) -> list[str]:
    """Lines that compare pages of 100 rows with datasette's; says so where there is no datasette."""
    ours = _page_seconds(lambda after: f"{service}/v1/mixes/{mix_id}/rows?limit={PAGE_ROWS}&after={after}")
    lines = ["| pages of 100 rows | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|", _percentiles("service", ours)]
    if command is None:
        return [*lines, "", "datasette was not measured: give its command with --datasette."]
    rows = (line for batch in mix_batches(store, "local", mix_id) for line in row_lines(batch))
    with datasette(folder, command, rows) as url:
        theirs = _page_seconds(lambda after: f"{url}/rows/rows.json?_size={PAGE_ROWS}&_shape=objects&_next={after}")
        again = _page_seconds(lambda after: f"{service}/v1/mixes/{mix_id}/rows?limit={PAGE_ROWS}&after={after}")
    return [*lines, _percentiles("datasette", theirs), _percentiles("service again", again)]


def _page_seconds(link: Callable[[int], str]) -> list[float]:
    found = []
    with httpx.Client(timeout=60) as http:
        for number in range(N_PAGES):
            after = number * (N_ROWS // N_PAGES)
            begun = time.perf_counter()
            answer = http.get(link(after))
            found.append(time.perf_counter() - begun)
            document: dict[str, Any] = answer.json()
            assert len(document["rows"]) == PAGE_ROWS, answer.text[:200]
    return found


def _percentiles(name: str, seconds: list[float]) -> str:
    ordered = sorted(seconds)
    values = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000 for part in (0.5, 0.95, 0.99))
    return f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |"
