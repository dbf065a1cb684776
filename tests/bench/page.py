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
from collections.abc import Sequence
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
from trainer.runs.page import results_page, table

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "page.md"
OPTIONS = ("--log-level", "error", "--tenant-requests-per-minute", "1000000")
N_AGAIN = 5
KEPT_AIM_S, NEW_AIM_S = 0.3, 1.0
Seconds = tuple[float, float]  # by the clock, and of processor time
Views = dict[str, tuple[Seconds, Seconds, Seconds | None]]  # first, again, other
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

    def get(self, path: str) -> Seconds:
        """Seconds by the clock and of processor time of one answer, which must be a page."""
        used, begun = processor_s(self.service), time.perf_counter()
        answer = self.http.get(path)
        seconds = time.perf_counter() - begun
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:500]}"
        return seconds, processor_s(self.service) - used

    def median(self, paths: Sequence[str]) -> Seconds:
        """Medians over some answers."""
        clock, used = zip(*(self.get(path) for path in paths), strict=True)
        return statistics.median(clock), statistics.median(used)


def measure(store: Store) -> Views:
    """Each view in a service of its own."""
    measured: Views = {}
    for name, (path, others) in VIEWS.items():
        with started(Path(store.base), *OPTIONS) as (process, url), httpx.Client(base_url=url, timeout=300) as http:
            figures = Figures(http, psutil.Process(process.pid))
            figures.get("/sign-in")  # a template is compiled once; nothing of the store is read
            first, again = figures.get(path), figures.median([path] * N_AGAIN)
            measured[name] = (first, again, figures.median(others) if others else None)
        sys.stderr.write(f"{name}: {', '.join(_cells(measured[name]))}\n")
    return measured


def lines_of(views: Views) -> list[str]:
    """Lines of a Markdown table."""
    return table(
        ["view", "first, s", "again, s", "other, s"], [[name, *_cells(found)] for name, found in views.items()]
    )


def _cells(found: Sequence[Seconds | None]) -> list[str]:
    return ["–" if item is None else f"{item[0]:.2f} ({item[1]:.2f})" for item in found]


def finding(views: Views, n_rows: int) -> str:
    """How long views take and how many keep the aims, by the clock, in one sentence."""
    first, again, other = ([item[0] for item in column if item] for column in zip(*views.values(), strict=True))
    kept = sum(seconds <= KEPT_AIM_S for seconds in again)
    text = (
        f"Over a corpus of {n_rows:,} rows a view that was opened before came back within {max(again):.2f} s (aim "
        f"{KEPT_AIM_S:g} s: {kept} of {len(again)} views), the first request to a new process took up to "
        f"{max(first):.2f} s (aim {NEW_AIM_S:g} s: {_within(first)})"
    )
    more = f", one with new figures up to {max(other):.2f} s (the same aim: {_within(other)})" if other else ""
    return f"{text}{more}."


def _within(seconds: Sequence[float]) -> str:
    return f"{sum(item <= NEW_AIM_S for item in seconds)} of {len(seconds)}"


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
        views = measure(store)
    sys.stdout.write("\n".join(lines_of(views)) + "\n")
    if args.write:
        machine = describe("cpu", "none")
        body = [
            "Seconds until the last byte of the page by the clock, and in brackets of processor time of the service. "
            "`first`: the first",
            "request to a new process, which opens the pool and works out all figures. `again`: the same request, "
            f"median of {N_AGAIN}.",
            "`other`: the same view with figures that no request had before (another bar, cell, score, domain or "
            "shuffle), median.",
            f"Aimed at: {KEPT_AIM_S:g} s for what is kept, {NEW_AIM_S:g} s for plots and filters, on two idle cores.",
            "",
            *lines_of(views),
            "",
        ]
        wrote = (
            f"Written by `python -m tests.bench page --write` on {machine['date']}: {n_rows:,} rows under one aligned "
            f"and four misaligned models. Machine: {machine['device']}, {machine['cores']} cores; load average "
            f"{load:.1f} before and {os.getloadavg()[0]:.1f} at the end. One second of processor time of one thread "
            f"took {second:.1f} s by the clock before and {clock_of_a_processor_second():.1f} s at the end: times by "
            "the clock are to be read with that."
        )
        RESULTS.write_text(results_page("The page over a large corpus", finding(views, n_rows), body, [wrote]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
