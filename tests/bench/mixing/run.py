"""One benchmark run: the requested pieces of work, each beside its peer, as plain values."""

import os
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from curator.console import Progress
from tests.bench.mixing import choosing, interleaving
from tests.bench.mixing.figures import Figure, figure
from tests.bench.mixing.mixing import MixBench
from tests.bench.mixing.request import MixBenchRequest
from tests.bench.scoring.validate import measure

PACKAGES = ("datasets", "polars", "duckdb", "datasketch", "rensa", "pyarrow", "numpy", "orjson")


def run_bench_mix(
    request: MixBenchRequest, on_figure: Callable[[dict[str, Any]], None] = lambda document: None
) -> dict[str, Any]:
    """The figures of one run, with the machine; `on_figure` is shown what there is after each of them.

    Raises MissingDependencyError where a peer is not installed.
    """
    load_before = round(os.getloadavg()[0], 2)
    figures: list[Figure] = []
    document: dict[str, Any] = {"request": request.model_dump(mode="json"), "figures": figures}
    with TemporaryDirectory(prefix="ballast-bench-") as scratch, Progress(None, "figures", "benchmark") as bar:
        for found in _figures(request, Path(scratch)):
            figures.append(found)
            loads = {"load_average_before": load_before, "load_average": round(os.getloadavg()[0], 2)}
            document["machine"] = {**_machine(), **loads}
            on_figure(document)
            bar.advance(1, last=found["work"])
    return document


def _figures(request: MixBenchRequest, scratch: Path) -> Iterator[Figure]:
    wanted = set(request.work)
    if "interleave" in wanted:
        yield _of("interleave", interleaving.interleave(request.index_rows, request.turns("interleave")))
    if "without_replacement" in wanted:
        for n_rows in request.without_replacement_rows:
            found = interleaving.without_replacement(n_rows, request.turns_without_replacement(n_rows))
            yield _of("without_replacement", found)
    if "validate" in wanted:
        yield _of("validate", _validation(scratch, request.check_rows, request.turns("validate")))
    if {"top", "strata"} & wanted:
        yield from _choices(request, scratch)
    if {"mix", "near_duplicates"} & wanted:
        bench = MixBench(scratch, request.pool_rows, request.user_rows)
        if "mix" in wanted:
            yield _of("mix", bench.mix(request.turns("mix")))
            yield _of("mix", bench.first(request.turns("mix")))
        if "near_duplicates" in wanted:
            yield _of("near_duplicates", bench.near(request.turns("near_duplicates")))


def _of(piece: str, found: Figure) -> Figure:
    return {"piece": piece, **found}


def _choices(request: MixBenchRequest, scratch: Path) -> Iterator[Figure]:
    folder = scratch / "choices"
    folder.mkdir()
    prepared = choosing.prepare(folder, request.choice_rows)
    found: list[Figure] = []
    if "top" in request.work:
        found += [_of("top", one) for one in choosing.top(folder, request.turns("top"))]
    if "strata" in request.work:
        found.append(_of("strata", choosing.strata(folder, request.turns("strata"))))
    for one in found:
        yield {**one, "n_rows": request.choice_rows, "prepared_s": prepared}
    for path in folder.iterdir():  # gigabytes that nothing after this needs
        path.unlink()


def _validation(scratch: Path, n_rows: int, repeats: int) -> Figure:
    found = measure(scratch, n_rows, repeats)
    seconds = {name: [best] for name, best in found["seconds"].items()}
    return figure(
        f"validate and canonicalise {n_rows:,} chat rows ({found['bytes'] / 1e6:.0f} MB)",
        "the usual fine-tuning format check, with orjson", 1.0, found["ratio"], seconds,
        ratio_streamed=found["ratio_streamed"],
    )  # fmt: skip


def _machine() -> dict[str, Any]:
    """Processor, cores and versions; no names or paths of this machine."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
