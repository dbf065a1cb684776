"""`python -m tests.bench page`: how long views of the page take over a corpus of a million rows.

The service runs as a process of its own, a new one for each view. `first` is the first request to that process, which
opens the pool and works out every figure; `again` the same request, whose figures are kept; `other` a request of the
same view whose figures nobody has asked for before, as a click on a bar gives. Times are those until the last byte of
the page is here; a browser paints on the first. The corpus is made up, scored by one aligned and four misaligned
models, and its pool is made as `ballast score` makes it. `--write` puts the figures into docs/results/page.md.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import psutil

from curator.corpus.manifest import read_corpus
from curator.select.pool import publish_pool
from curator.store.store import Store
from tests.api.serving import started
from tests.bench.mixing.corpus import CORPUS, write_scored_corpus
from tests.bench.service.costs import processor_s
from tests.bench.service.load import clock_of_a_processor_second
from trainer.runs.machine import describe

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "page.md"
OPTIONS = ("--log-level", "error", "--tenant-requests-per-minute", "1000000")
N_AGAIN = 5
_ROWS = f"/corpora/{CORPUS}/rows"
# Name: the view, and others of its kind that ask for figures of their own.
VIEWS: dict[str, tuple[str, Sequence[str]]] = {
    "corpora": ("/", ()),
    "corpus, its two plots and its ends": (f"/corpora/{CORPUS}", [f"/corpora/{CORPUS}?score=gap_abs"]),
    "the same, a domain held out": (
        f"/corpora/{CORPUS}?hold_out=domain-1", [f"/corpora/{CORPUS}?hold_out=domain-{n}" for n in (2, 3)],
    ),
    "rows and histogram": (_ROWS, [f"{_ROWS}?order=worst"]),
    "rows of a bar": (f"{_ROWS}?low=0.1&high=0.2", [f"{_ROWS}?low=0.{n}&high=0.{n + 1}" for n in (2, 3, 4)]),
    "rows of a cell": (
        f"{_ROWS}?aligned_low=1&aligned_high=1.2&misaligned_low=1.4&misaligned_high=1.6",
        [f"{_ROWS}?aligned_low=1&aligned_high=1.{n}&misaligned_low=1.4&misaligned_high=1.6" for n in (3, 4, 5)],
    ),
    "rows, shuffled": (f"{_ROWS}?order=shuffled&seed=1", [f"{_ROWS}?order=shuffled&seed={n}" for n in (2, 3, 4)]),
    "rows that hold a word": (f"{_ROWS}?search=changed", [f"{_ROWS}?search={word}" for word in ("bab", "rust")]),
    "mix builder": ("/mix", ()),
}  # fmt: skip


class Figures:
    """Seconds of answers by the clock, and of the service's processes."""

    def __init__(self, http: httpx.Client, service: psutil.Process) -> None:
        self.http, self.service = http, service

    def get(self, path: str) -> tuple[float, float]:
        """Seconds by the clock and of processor time of one answer, which must be a page."""
        used, begun = processor_s(self.service), time.perf_counter()
        answer = self.http.get(path)
        seconds = time.perf_counter() - begun
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:500]}"
        return seconds, processor_s(self.service) - used

    def median(self, paths: Sequence[str]) -> tuple[float, float]:
        """Medians over some answers."""
        clock, used = zip(*(self.get(path) for path in paths), strict=True)
        return statistics.median(clock), statistics.median(used)


def table(store: Store) -> list[str]:
    """Lines of a Markdown table: each view in a service of its own."""
    lines = ["| view | first, s | again, s | other, s |", "|---|---|---|---|"]
    for name, (path, others) in VIEWS.items():
        with started(Path(store.base), *OPTIONS) as (process, url), httpx.Client(base_url=url, timeout=300) as http:
            figures = Figures(http, psutil.Process(process.pid))
            figures.get("/sign-in")  # a template is compiled once; nothing of the store is read
            found: list[Callable[[], tuple[float, float]]] = [
                lambda figures=figures, path=path: figures.get(path),  # type: ignore[misc]
                lambda figures=figures, path=path: figures.median([path] * N_AGAIN),  # type: ignore[misc]
            ]
            cells = [f"{clock:.2f} ({used:.2f})" for clock, used in (measure() for measure in found)]
            cells.append("{:.2f} ({:.2f})".format(*figures.median(others)) if others else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        sys.stderr.write(f"{lines[-1]}\n")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Make the corpus, measure, and print or write the figures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench page", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of the corpus (1,000,000)")
    parser.add_argument("--store", type=Path, help="a folder for the corpus, kept and used again (default: temporary)")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/results/page.md")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        store = Store(args.store or Path(name)).open()
        if CORPUS not in store.list("corpora"):
            write_scored_corpus(store, args.rows)
        publish_pool(store, CORPUS)
        n_rows = read_corpus(store, CORPUS).n_examples
        load, second = os.getloadavg()[0], clock_of_a_processor_second()
        text = "\n".join(table(store)) + "\n"
    sys.stdout.write(text)
    if args.write:
        machine = describe("cpu", "none")
        head = (
            f"# The page over a large corpus\n\nWritten by `python -m tests.bench page --write` on {machine['date']}: "
            f"{n_rows:,} rows under one aligned and four misaligned models. Machine: {machine['device']}, "
            f"{machine['cores']} cores; load average {load:.1f} before and {os.getloadavg()[0]:.1f} at the end. One "
            f"second of processor time of one thread took {second:.1f} s by the clock before and "
            f"{clock_of_a_processor_second():.1f} s at the end: times by the clock are to be read with that.\n\n"
            "Seconds until the last byte of the page by the clock, and in brackets of processor time of the service. "
            "`first`: the first\nrequest to a new process, which opens the pool and works out all figures. `again`: "
            f"the same request, median of {N_AGAIN}.\n`other`: the same view with figures that no request had before "
            "(another bar, cell, score, domain or shuffle), median.\nAimed at: 0.3 s for what is kept, 1 s for plots "
            "and filters, on two idle cores.\n\n"
        )
        RESULTS.write_text(head + text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
