"""`python -m tests.bench service`: clients that build, read, download and delete mixes at once, on this machine.

First what single requests cost, beside bare tools. Then the service as a process of its own over the demo's corpus
with a real tokenizer: the clients run for a fixed time, which gives latency percentiles by operation, errors and the
service's memory. Then one tenant's small mixes beside another's large uploads (`python -m tests.bench.service.fairness`
alone). Last a mix of 200,000 rows: downloads beside static file servers, pages of rows beside datasette's.
`--write` also puts all of it into docs/results/service.md.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson
import psutil

from curator.store.store import Store
from tests.api.serving import started
from tests.bench.service.costs import (
    RECIPE,
    large_request,
    mix_beside_readers,
    processor_s,
    request_costs,
    statement_times,
)
from tests.bench.service.downloads import downloads, large_mix, pages
from tests.bench.service.fairness import fairness
from tests.bench.service.stores import demo_store, user_rows
from trainer.runs.machine import describe

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "service.md"
MIB = 2**20
MARKER = b"a client's own rows"
LARGE_TITLE = "## One mix of 200,050 rows, measured"
# All clients are one tenant here: its own shares would refuse what is to be measured.
OPTIONS = ("--log-level", "error", "--tenant-requests-per-minute", "1000000", "--tenant-builds", "64")


@dataclass
class Tally:
    """What happened: seconds by operation, and answers that were none of the expected."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)
    settled_bytes: int = 0  # resident memory of the service after as many rounds as there are clients
    lock: threading.Lock = field(default_factory=threading.Lock)

    def timed(self, name: str, call: Callable[[], httpx.Response], *expected: int) -> httpx.Response:
        begun = time.perf_counter()
        answer = call()
        with self.lock:
            self.seconds[name].append(time.perf_counter() - begun)
            if answer.status_code not in expected:
                self.faults.append(f"{name}: {answer.status_code} {answer.text[:200]}")
        return answer


def client(url: str, number: int, deadline_s: float, tally: Tally, rows: bytes) -> None:
    """One client until the deadline: build, list, read a page, download, delete. No two send the same rows."""
    turn = 0
    recipe = {"recipe": orjson.dumps(RECIPE).decode()}
    with httpx.Client(base_url=url, timeout=120) as http:
        while time.monotonic() < deadline_s:
            turn += 1
            sent = rows.replace(MARKER, f"client {number} turn {turn}".encode())
            body = {"files": {"file": ("task.jsonl", sent)}, "data": recipe}
            try:
                made = tally.timed("build", lambda body=body: http.post("/v1/mixes", **body), 201)  # type: ignore[misc]
                if made.status_code != 201:
                    continue
                links = made.json()["links"]
                tally.timed("rows", lambda links=links: http.get(links["rows"]), 200)  # type: ignore[misc]
                tally.timed("list", lambda: http.get("/v1/mixes"), 200)
                for name in ("jsonl", "parquet"):
                    tally.timed(f"data {name}", lambda links=links, name=name: http.get(links[name]), 200)  # type: ignore[misc]
                tally.timed("delete", lambda links=links: http.delete(links["self"]), 204)  # type: ignore[misc]
            except httpx.HTTPError as error:
                tally.faults.append(f"no answer: {error!r}")


def load(store: Store, n_clients: int, seconds: float, n_rows: int) -> tuple[Tally, list[int], float]:
    """Run the clients; returns what they saw, the service's resident bytes each half second, and its processor seconds.

    Memory is that of the service's own process; processor time that of the processes beside it too.
    """
    tally, memory, used_s = Tally(), list[int](), 0.0
    bodies = [user_rows(store, n_rows, seed, MARKER.decode()) for seed in range(n_clients)]
    with started(Path(store.base), *OPTIONS) as (process, url):
        deadline_s = time.monotonic() + seconds
        threads = [
            threading.Thread(target=client, args=(url, number, deadline_s, tally, bodies[number]))
            for number in range(n_clients)
        ]
        for thread in threads:
            thread.start()
        service = psutil.Process(process.pid)
        while any(thread.is_alive() for thread in threads):
            memory.append(service.memory_info().rss)
            if len(tally.seconds["delete"]) < n_clients:
                tally.settled_bytes = memory[-1]
            used_s = processor_s(service)
            time.sleep(0.5)
    return tally, memory, used_s


def table(seen: tuple[Tally, list[int], float], n_clients: int, seconds: float, n_rows: int) -> str:
    """The figures of `load` as Markdown."""
    tally, memory, used_s = seen
    n_mixes = max(1, len(tally.seconds["build"]))
    lines = [
        f"{n_clients} clients for {seconds:g} s, data sets of {n_rows} rows,",
        f"{psutil.cpu_count()} cores shared with the clients (and whatever else ran on the machine).",
        "",
        "| operation | answers | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for name, values in sorted(tally.seconds.items()):
        ordered = sorted(values)
        shown = [f"{ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000:.0f}" for part in (0.5, 0.95, 0.99)]
        lines.append(f"| {name} | {len(ordered)} | {' | '.join(shown)} |")
    early, end = memory[len(memory) // 10], memory[-1]
    lines += [
        "",
        f"Mixes a second: {n_mixes / seconds:.1f} (before: 2.8 to 3.4; at least 30). With its five other requests",
        f"a mix took {1000 * used_s / n_mixes:.0f} ms of processor time of the service and the processes beside it,",
        f"their start included; they got {used_s / seconds:.2f} of {psutil.cpu_count()} cores.",
        f"Errors: {len(tally.faults)}. Resident memory of the service's own process after a tenth of the time",
        f"{early // MIB} MiB, at the end {end // MIB} MiB; the processes beside it are not in it.",
        "",
        "Not measured here: the same from a pool of a million rows (aimed at: 20 mixes a second, at most 500 MiB), and",
        "ten minutes of load.",
    ]
    return "\n".join(lines) + "\n"


def clock_of_a_processor_second() -> float:
    """Seconds by the clock that one thread needs for a second of processor time: 1 on an idle machine."""
    begun, clock = time.process_time(), time.perf_counter()
    while time.process_time() - begun < 1:
        pass
    return time.perf_counter() - clock


def single_requests(store: Store, tokenizer: Path) -> str:
    """What single requests cost, as Markdown."""
    lines = [
        "## Single requests",
        "",
        "Processor time of the service and the processes beside it for one request, and of bare tools for the same",
        "work: parse and write the rows (orjson), count tokens (`tokenizers.encode_batch`), take the best of the pool",
        "(Polars), write the file (pyarrow), hash the lines. Means after two requests that warm both; rows are 1.2 KB",
        "of real text, all new. `Before` is commit 950b297 on two idle cores; `at most` is what was aimed at on idle",
        "cores.",
        "Ratios hold on a busy machine too, processor times grow there: cores share their caches.",
        "",
        *request_costs(store, tokenizer, OPTIONS),
        "",
        statement_times(store, OPTIONS),
        mix_beside_readers(store, OPTIONS),
        large_request(store, OPTIONS),
    ]
    return "\n".join(lines) + "\n"


def large(command: str | None) -> str:
    """Figures of one large mix as Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, mix_id = large_mix(folder)
        with started(folder / "store", *OPTIONS) as (_, url):
            lines = [*downloads(url, store, mix_id, folder), "", *pages(url, store, mix_id, folder, command)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit code whether every answer was as expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench service", description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=200, help="rows of each data set")
    parser.add_argument(
        "--datasette", metavar="COMMAND", default=shutil.which("datasette"), help="default: that on PATH"
    )
    parser.add_argument("--skip-large", action="store_true", help="leave out the mix of 200,000 rows")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name} under docs/results")
    args = parser.parse_args(argv)
    begun_load, begun_share = os.getloadavg()[0], clock_of_a_processor_second()
    with tempfile.TemporaryDirectory() as name:
        store = demo_store(Path(name))
        text = single_requests(store, Path(name) / "tokenizer")
        seen = load(store, args.clients, args.seconds, args.rows)
    tally = seen[0]
    text += f"\n## Under load\n\n{table(seen, args.clients, args.seconds, args.rows)}"
    text += "\n## Turns between tenants\n\n" + "\n".join(fairness()) + "\n"
    if not args.skip_large:
        text += f"\n{LARGE_TITLE} on {time.strftime('%Y-%m-%d')}\n\n{large(args.datasette)}"
    elif RESULTS.exists():  # what was measured before stays, under its own date
        text += "".join(RESULTS.read_text().rpartition(f"\n{LARGE_TITLE}")[1:])
    sys.stdout.write(text)
    for fault in tally.faults[:5]:
        sys.stdout.write(f"{fault}\n")
    if args.write:
        machine = describe("cpu", "none")
        head = (
            f"# The service under load\n\nWritten by `python -m tests.bench service --write` on {machine['date']}. "
            f"Machine: {machine['device']}, {machine['cores']} cores; load average {begun_load:.1f} before and "
            f"{os.getloadavg()[0]:.1f} at the end. One second of processor time of one thread took "
            f"{begun_share:.1f} s by the clock before and {clock_of_a_processor_second():.1f} s at the end: times by "
            "the clock are to be read with that.\n\n"
        )
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(head + text)
    return 1 if tally.faults else 0
