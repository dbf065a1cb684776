"""What one request costs: processor time of the service beside the same work with bare tools, and times of long ones.

Called by `tests.bench.service.load`. Every request is sent as a client sends it. Bare tools do what the result needs
and no more: orjson parses and writes the rows, `tokenizers.encode_batch` counts their tokens, Polars filters and takes
the best of the pool, pyarrow writes the file, hashlib hashes the lines.
"""

import hashlib
import io
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from curator.corpus.manifest import read_corpus
from curator.store.store import Store
from tests.api.serving import started
from tests.bench.service.stores import CORPUS, N_SCORED, user_rows

SIZES = {1: 30, 200: 12, 1_000: 10}  # rows of a mix, and how many are sent
N_SAFE_SHARE = 20  # one safe row for so many rows of the user
RECIPE: dict[str, object] = {"corpus": CORPUS, "interleave_ratio": 1 / N_SAFE_SHARE}
LARGE_RECIPE: dict[str, object] = {"corpus": CORPUS, "rows": 70}  # of the 80, some are refusals
BOUNDARY = "ballast-bench"
FORM_HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
STATEMENT = "select corpus, count(*) as n from examples group by corpus"
N_STATEMENTS, N_READERS, N_LARGE_ROWS = 40, 8, 100_000
# At commit 950b297 on two cores, pool of 80 rows.
BEFORE_MS = {1: 417, 200: 509, 1_000: 1_068}
REACH_MS = {1: 30, 200: 60, 1_000: 200}


@dataclass(frozen=True)
class Service:
    """A running service, and how much processor time it has used."""

    http: httpx.Client
    process: psutil.Process

    def cpu_s(self) -> float:
        """User and system seconds since its start, of the service and the processes beside it."""
        return processor_s(self.process)

    def mix(self, rows: bytes, expected: int = 201, recipe: dict[str, object] = RECIPE) -> dict[str, object]:
        """The answer to a data set that is sent as a file; raises AssertionError for another status."""
        data = {"recipe": orjson.dumps(recipe).decode()}
        answer = self.http.post("/v1/mixes", files={"file": ("task.jsonl", rows)}, data=data)
        assert answer.status_code == expected, answer.text[:500]
        found: dict[str, object] = answer.json()
        return found


def plain_connection(url: str) -> HTTPConnection:
    """Not httpx, where the client's own work would count: that takes as much processor time as the service's part."""
    return HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=120)


def form_body(rows: bytes, recipe: Mapping[str, object]) -> bytes:
    """One upload as multipart/form-data."""
    parts = (
        b'name="recipe"\r\n\r\n' + orjson.dumps(recipe),
        b'name="file"; filename="task.jsonl"\r\n\r\n' + rows,
    )
    opened = b"".join(b"--%b\r\nContent-Disposition: form-data; %b\r\n" % (BOUNDARY.encode(), part) for part in parts)
    return opened + b"--%b--\r\n" % BOUNDARY.encode()


def processor_s(process: psutil.Process) -> float:
    """User and system seconds of a process and of all below it, those that ended too."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:4])  # its own, and those of children that it waited for
    return total


@contextmanager
def serving(store: Store, *options: str) -> Iterator[Service]:
    """The service over a store, as a process of its own."""
    with started(Path(store.base), *options) as (process, url), httpx.Client(base_url=url, timeout=300) as http:
        yield Service(http, psutil.Process(process.pid))


@dataclass(frozen=True)
class BareTools:
    """The same work without this product, over the scored rows of the pool and their texts."""

    tokenizer: Tokenizer
    pool: pl.DataFrame

    @classmethod
    def load(cls, store: Store, tokenizer: Path) -> "BareTools":
        """Tokenizer and pool, which a server would hold too."""
        parts = [store.read_table(part, ["example_id", "messages"]) for part in read_corpus(store, CORPUS).parts]
        found = pl.from_arrow(pa.concat_tables(parts))
        assert isinstance(found, pl.DataFrame)
        scores = np.full(found.height, np.nan)
        scores[:N_SCORED] = np.random.default_rng(0).normal(size=N_SCORED)
        pool = found.with_columns(pl.Series("score", scores).fill_nan(None))
        return cls(Tokenizer.from_file(str(tokenizer / "tokenizer.json")), pool)

    def mix(self, body: bytes) -> int:
        """Tokens of the mix that these rows give; its file and its hash are made and dropped."""
        rows = [orjson.loads(line)["messages"] for line in body.splitlines()]
        texts = [orjson.dumps(row) for row in rows]
        n_safe = max(1, len(rows) // N_SAFE_SHARE)
        best = self.pool.filter(pl.col("score").is_not_null()).top_k(n_safe, by=["score", "example_id"])
        safe = [text.encode() for text in best["messages"]]
        everything = [*texts, *safe]
        digest = hashlib.sha256()
        for position, text in enumerate(everything):
            line = {"position": position, "example_id": hashlib.blake2b(text, digest_size=16).hexdigest()}
            digest.update(orjson.dumps(line | {"messages": orjson.Fragment(text)}, option=orjson.OPT_APPEND_NEWLINE))
        table = pa.table({"position": range(len(everything)), "messages": [text.decode() for text in everything]})
        pq.write_table(table, io.BytesIO(), compression="zstd")
        rendered = ["".join(map(_turn, orjson.loads(text))) for text in everything]
        encoded = self.tokenizer.encode_batch(rendered, add_special_tokens=False)
        return sum(len(item.ids) for item in encoded)


def _turn(message: dict[str, str]) -> str:
    return f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"


def request_costs(store: Store, tokenizer: Path, options: Sequence[str]) -> list[str]:
    """Lines of a Markdown table: processor milliseconds of the service for a mix of each size, beside bare tools."""
    tools = BareTools.load(store, tokenizer)
    lines = [
        "| rows of the mix | before, ms | service, ms | bare tools, ms | ratio | at most |",
        "|---|---|---|---|---|---|",
    ]
    with serving(store, *options) as service:
        for n_rows, n_sent in SIZES.items():
            bodies = [user_rows(store, n_rows, seed=n_rows + number) for number in range(n_sent + 2)]
            ours, theirs = [], []
            for body in bodies:  # one after the other, so that a busy machine slows both
                begun = service.cpu_s()
                service.mix(body)
                ours.append(1000 * (service.cpu_s() - begun))
                begun = time.process_time()
                tools.mix(body)
                theirs.append(1000 * (time.process_time() - begun))
            mine, bare = statistics.mean(ours[2:]), statistics.mean(theirs[2:])
            lines.append(
                f"| {n_rows:,} | {BEFORE_MS[n_rows]:,} | {mine:.0f} | {bare:.0f} | {mine / bare:.2f}x "
                f"| {REACH_MS[n_rows]} ms and 2x |"
            )
    return lines


def statement_times(store: Store, options: Sequence[str]) -> str:
    """A line on the time of a small SQL statement over HTTP, after the first."""
    with serving(store, *options) as service:
        seconds = _times(lambda: service.http.post("/v1/sql", json={"statement": STATEMENT}), N_STATEMENTS + 1)[1:]
    ordered = sorted(1000 * value for value in seconds)
    p50, p95 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
    return (
        f"A small SQL statement, warm, {N_STATEMENTS} one after the other: p50 {p50:.0f} ms, p95 {p95:.0f} ms, fastest "
        f"{ordered[0]:.0f} ms (before: 450 ms; at most 60 ms at p50)."
    )


def mix_beside_readers(store: Store, options: Sequence[str]) -> str:
    """A line on the time of a mix of 1,000 rows while eight clients read pages of another.

    The readers have a process of their own: in this one they would hold the interpreter, and what is sent would wait
    for it.
    """
    with serving(store, *options) as service:
        links = service.mix(user_rows(store, 1_000, seed=5))["links"]
        assert isinstance(links, dict)
        bodies = iter([user_rows(store, 1_000, seed=100 + number) for number in range(20)])
        readers = multiprocessing.get_context("spawn").Process(
            target=_read_all, args=(str(service.http.base_url), links["rows"]), daemon=True
        )
        readers.start()
        try:
            seconds = sorted(_times(lambda: service.mix(next(bodies)), 20)[1:])
            assert readers.is_alive(), "the readers ended"
        finally:
            readers.kill()
            readers.join()
    return (
        f"A mix of 1,000 rows beside {N_READERS} readers: p50 {seconds[len(seconds) // 2]:.2f} s, p95 "
        f"{seconds[int(len(seconds) * 0.95)]:.2f} s (at most 0.3 s)."
    )


def _read_all(url: str, link: str) -> None:
    """Read pages until this process is ended; it ends by itself when an answer is none."""
    with ThreadPoolExecutor(N_READERS) as threads:
        done, _ = wait([threads.submit(_read, url, link) for _ in range(N_READERS)], return_when=FIRST_EXCEPTION)
        os._exit(len(done))


def _read(url: str, link: str) -> None:
    with closing(plain_connection(url)) as connection:
        while True:
            connection.request("GET", link)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status


def sent_job(url: str, form: bytes) -> dict[str, Any]:
    """The job that an upload became."""
    with closing(plain_connection(url)) as connection:
        connection.request("POST", "/v1/mixes", form, FORM_HEADERS)
        answer = connection.getresponse()
        content = answer.read()
    assert answer.status == 202, content[:500]
    found: dict[str, Any] = orjson.loads(content)
    return found


def finished(url: str, job: dict[str, Any]) -> dict[str, Any]:
    """The job once it is done, looked at ten times a second."""
    with closing(plain_connection(url)) as connection:
        while job["state"] not in ("done", "failed"):
            time.sleep(0.1)
            connection.request("GET", f"/v1/jobs/{job['job_id']}")
            job = orjson.loads(connection.getresponse().read())
    assert job["state"] == "done", job
    return job


def _times(call: Callable[[], object], n: int) -> list[float]:
    found = []
    for _ in range(n):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return found


def large_request(store: Store, options: Sequence[str]) -> str:
    """A line on 100,000 rows from the first byte sent to the finished mix, built by a worker."""
    body = user_rows(store, N_LARGE_ROWS, seed=9)
    form = form_body(body, LARGE_RECIPE)
    worker = subprocess.Popen(
        [sys.executable, "-m", "api", "worker", "--store", store.base],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with serving(store, *options, "--async-rows", "5000", "--workers", "0") as service:
            time.sleep(3)  # the worker's start is no part of a request
            begun = time.perf_counter()
            url = str(service.http.base_url)
            job = sent_job(url, form)
            answered_s = time.perf_counter() - begun
            finished(url, job)
            done_s = time.perf_counter() - begun
            cpu = service.cpu_s()
    finally:
        worker.terminate()
        worker.wait()
    return (
        f"{N_LARGE_ROWS:,} rows ({len(body) / 1e6:.0f} MB): 202 after {answered_s:.1f} s (received and checked), mix "
        f"done {done_s:.1f} s after the first byte (before: 26 s; at most 8 s). The service and the processes beside "
        f"it, but not the worker, used {cpu:.1f} s of processor time, their start included."
    )
