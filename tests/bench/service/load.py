"""`python -m tests.bench service`: clients that build, read, download and delete mixes at once, on this machine.

`--work` names what is measured, all but `memory` by default:

    requests   what single requests cost, beside bare tools, and 100,000 rows from the first byte to the finished mix
    load       the service as a process of its own over the demo's corpus with a real tokenizer: clients for a fixed
               time, which gives latency percentiles by operation, errors and memory
    million    the same from a pool of a million rows
    turns      one tenant's small mixes beside another's large uploads
    large      a mix of 200,000 rows: downloads beside static file servers, pages of rows beside datasette's
    memory     ten minutes of the load: memory at their end beside that after the first

`--write` puts what was measured into docs/results/service.md, and leaves the other sections as they stand.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import orjson
import psutil

from curator.store.store import Store
from tests.api.serving import scored_store, started
from tests.bench.service.bombs import bombs
from tests.bench.service.costs import (
    FORM_HEADERS,
    RECIPE,
    form_body,
    large_request,
    mix_beside_readers,
    plain_connection,
    processor_s,
    request_costs,
    statement_times,
)
from tests.bench.service.downloads import downloads, large_mix, pages
from tests.bench.service.fairness import fairness
from tests.bench.service.finding import finding
from tests.bench.service.stores import CORPUS, demo_store, large_store, user_rows
from trainer.runs.machine import describe
from trainer.runs.page import results_page

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "service.md"
MIB = 2**20
MARKER = b"a client's own rows"
TITLES = {
    "requests": "Single requests",
    "load": "Under load",
    "million": "Under load, from a pool of a million rows",
    "turns": "Turns between tenants",
    "bombs": "Bombs",
    "large": "One mix of 200,050 rows",
    "memory": "Ten minutes of load",
}
WROTE = """\
Written by `python -m tests.bench service --write`. Each section says when it was measured and what else ran then: times
by the clock are to be read with that."""
# All clients are one tenant here: its own shares would refuse what is to be measured.
OPTIONS = ("--log-level", "error", "--tenant-requests-per-minute", "1000000", "--tenant-builds", "64")


@dataclass
class Tally:
    """What happened: seconds by operation, and answers that were none of the expected."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)
    settled_bytes: int = 0  # resident memory of the service after as many rounds as there are clients
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Caller:
    """One client's connection."""

    connection: HTTPConnection
    tally: Tally

    def ask(self, name: str, expected: int, method: str, path: str, body: bytes | None = None) -> bytes | None:
        """The answer's body; None, and a fault, for another status."""
        begun = time.perf_counter()
        self.connection.request(method, path, body, {} if body is None else FORM_HEADERS)
        answer = self.connection.getresponse()
        content = answer.read()
        with self.tally.lock:
            self.tally.seconds[name].append(time.perf_counter() - begun)
            if answer.status != expected:
                self.tally.faults.append(f"{name}: {answer.status} {content[:200]!r}")
        return content if answer.status == expected else None


@dataclass(frozen=True)
class Load:
    """What is sent: a corpus's store, data sets of `n_rows` rows that end in MARKER, and for how long by how many."""

    store: Store
    corpus: str
    bodies: Sequence[bytes]
    n_rows: int
    n_clients: int
    seconds: float


def client(url: str, number: int, deadline_s: float, tally: Tally, load: Load) -> None:
    """One client until the deadline: build, list, read a page, download, delete. No two send the same rows."""
    with closing(plain_connection(url)) as connection:
        caller, turn = Caller(connection, tally), 0
        while time.monotonic() < deadline_s:
            turn += 1
            rows = load.bodies[number % len(load.bodies)].replace(MARKER, f"client {number} turn {turn}".encode())
            try:
                made = caller.ask("build", 201, "POST", "/v1/mixes", form_body(rows, {**RECIPE, "corpus": load.corpus}))
                if made is None:
                    continue
                links = orjson.loads(made)["links"]
                caller.ask("rows", 200, "GET", links["rows"])
                caller.ask("list", 200, "GET", "/v1/mixes")
                for name in ("jsonl", "parquet"):
                    caller.ask(f"data {name}", 200, "GET", links[name])
                caller.ask("delete", 204, "DELETE", links["self"])
            except (HTTPException, OSError) as error:
                tally.faults.append(f"no answer: {error!r}")
                connection.close()


@dataclass(frozen=True)
class Seen:
    """What a load gave: `memory` has, every half second, the resident bytes of the service's process and of all."""

    tally: Tally
    memory: Sequence[tuple[int, int]]
    service_s: float  # of processor time, of the service and the processes beside it
    clients_s: float


def run_load(load: Load) -> Seen:
    """Run the clients in threads of this process."""
    tally, memory, used_s = Tally(), list[tuple[int, int]](), 0.0
    with started(Path(load.store.base), *OPTIONS) as (process, url):
        begun_s, deadline_s = time.process_time(), time.monotonic() + load.seconds
        threads = [
            threading.Thread(target=client, args=(url, number, deadline_s, tally, load))
            for number in range(load.n_clients)
        ]
        for thread in threads:
            thread.start()
        service = psutil.Process(process.pid)
        while any(thread.is_alive() for thread in threads):
            memory.append(_resident(service))
            if len(tally.seconds["delete"]) < load.n_clients:
                tally.settled_bytes = memory[-1][0]
            used_s = processor_s(service)
            time.sleep(0.5)
        clients_s = time.process_time() - begun_s
    return Seen(tally, memory, used_s, clients_s)


def _resident(service: psutil.Process) -> tuple[int, int]:
    """Bytes of the service's own process, and of it and the processes beside it without what they share."""
    own = service.memory_info().rss
    total = own
    for each in service.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found = each.memory_info()
            total += found.rss - found.shared
    return own, total


def table(seen: Seen, load: Load, reach: int) -> str:
    """The figures of a load as Markdown; `reach` mixes a second are aimed at."""
    n_mixes = max(1, len(seen.tally.seconds["build"]))
    lines = [
        f"{load.n_clients} clients for {load.seconds:g} s, data sets of {load.n_rows} rows,",
        f"{psutil.cpu_count()} cores shared with the clients (and whatever else ran on the machine).",
        "",
        "| operation | answers | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for name, values in sorted(seen.tally.seconds.items()):
        ordered = sorted(values)
        shown = [f"{ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000:.0f}" for part in (0.5, 0.95, 0.99)]
        lines.append(f"| {name} | {len(ordered)} | {' | '.join(shown)} |")
    lines += [
        "",
        f"Mixes a second: {n_mixes / load.seconds:.1f} (at least {reach} on two idle cores). With its five other",
        f"requests a mix took {1000 * seen.service_s / n_mixes:.0f} ms of processor time of the service and the",
        f"processes beside it, their start included, and {1000 * seen.clients_s / n_mixes:.0f} ms of the clients; the",
        f"service got {seen.service_s / load.seconds:.2f} of {psutil.cpu_count()} cores.",
        f"Errors: {len(seen.tally.faults)}. {_memory_line(seen, 0.1, 'after a tenth of the time')}",
    ]
    return "\n".join(lines) + "\n"


def _memory_line(seen: Seen, part: float, when: str) -> str:
    (early, early_all), (end, end_all) = seen.memory[int(len(seen.memory) * part)], seen.memory[-1]
    return (
        f"Resident memory of the service's own process {when} {early // MIB} MiB, at the end {end // MIB} MiB; with "
        f"the processes beside it, pages that they share left out, {early_all // MIB} and {end_all // MIB} MiB."
    )


def clock_of_a_processor_second() -> float:
    """Seconds by the clock that one thread needs for a second of processor time: 1 on an idle machine."""
    begun, clock = time.process_time(), time.perf_counter()
    while time.process_time() - begun < 1:
        pass
    return time.perf_counter() - clock


def single_requests(store: Store, tokenizer: Path) -> str:
    """What single requests cost, as Markdown."""
    lines = [
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
        store = scored_store(folder / "store")
        with started(folder / "store", *OPTIONS) as (_, url):
            mix_id = large_mix(url)
            lines = [*downloads(url, store, mix_id, folder), "", *pages(url, store, mix_id, folder, command)]
    return "\n".join(lines) + "\n"


def measure(work: str, args: argparse.Namespace) -> tuple[str, list[str]]:
    """One section of the page, and faults."""
    if work == "turns":
        return "\n".join(fairness()) + "\n", []
    if work == "large":
        return large(args.datasette), []
    if work == "bombs":
        lines, faults = bombs(OPTIONS)
        return "\n".join(lines) + "\n", faults
    with tempfile.TemporaryDirectory() as name:
        demo = demo_store(Path(name) / "demo")
        if work == "requests":
            return single_requests(demo, Path(name) / "demo" / "tokenizer"), []
        store, corpus, reach = demo, CORPUS, 30
        if work == "million":
            store, corpus = large_store(Path(name) / "million", args.pool_rows)
            reach = 20
        bodies = [user_rows(demo, args.rows, seed, MARKER.decode()) for seed in range(args.clients)]
        seconds = 600.0 if work == "memory" else args.seconds
        load = Load(store, corpus, bodies, args.rows, args.clients, seconds)
        seen = run_load(load)
    if work != "memory":
        return table(seen, load, reach), seen.tally.faults
    line = _memory_line(seen, 0.1, "after one minute of ten")
    growth = seen.memory[-1][1] / seen.memory[len(seen.memory) // 10][1]
    return f"{line} That is {growth:.2f}x (at most 1.2x). Errors: {len(seen.tally.faults)}.\n", seen.tally.faults


def sections(page: str) -> dict[str, str]:
    """The sections of a page by title, each with its text; what stands before the first is left out."""
    return {part.partition("\n")[0]: part.partition("\n")[2].strip("\n") for part in f"\n{page}".split("\n## ")[1:]}


def page(every: Mapping[str, str]) -> str:
    """The page of these sections, in the order of TITLES."""
    shown = [f"## {title}\n\n{every[title]}\n" for title in TITLES.values() if title in every]
    return results_page("The service under load", finding(every), shown, [WROTE])


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit code whether every answer was as expected."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench service", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs="+", choices=TITLES, default=[work for work in TITLES if work != "memory"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a load")
    parser.add_argument("--rows", type=int, default=200, help="rows of each data set of a load")
    parser.add_argument("--pool-rows", type=int, default=1_000_000, help="rows of the pool of `million`")
    parser.add_argument(
        "--datasette", metavar="COMMAND", default=shutil.which("datasette"), help="default: that on PATH"
    )
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name} under docs/results")
    args = parser.parse_args(argv)
    found, faults = dict[str, str](), list[str]()
    for work in args.work:
        begun_load, begun_share = os.getloadavg()[0], clock_of_a_processor_second()
        text, wrong = measure(work, args)
        machine = describe("cpu", "none")
        head = (
            f"Measured on {machine['date']}: {machine['device']}, {machine['cores']} cores, load average "
            f"{begun_load:.1f} before and {os.getloadavg()[0]:.1f} at the end. A second of processor time of one "
            f"thread took {begun_share:.1f} s by the clock before and {clock_of_a_processor_second():.1f} s at the end."
        )
        found[TITLES[work]] = f"{head}\n\n{text}".rstrip("\n")
        faults += wrong
        sys.stdout.write(f"## {TITLES[work]}\n\n{found[TITLES[work]]}\n\n")
        sys.stdout.flush()
    for fault in faults[:5]:
        sys.stdout.write(f"{fault}\n")
    if args.write:
        known = sections(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(page({**known, **found}))
    return 1 if faults else 0
