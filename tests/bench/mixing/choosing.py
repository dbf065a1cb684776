"""The best rows of a large pool: `curator.select.select` over the wide table, beside Polars and DuckDB over the same rows.

All three apply the same filters and rank by the same gap; ours also counts, for every row, why it was left out. Cold is
a new process with the files out of the page cache; warm is one that has the table open (the peers: in memory).
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson

from curator.console import Progress
from curator.errors import ScoringError
from curator.query.gaps import GapSpec
from curator.recipe import Pool
from curator.select.columns import Indices
from curator.select.filters import Candidates
from curator.select.select import select
from curator.select.wide import Wide
from curator.select.widefile import read_wide
from tests.bench.mixing.figures import Figure, figure
from tests.bench.mixing.peers import peer
from tests.bench.mixing.rows import (
    COLUMNS_FILE,
    PEER_FILE,
    K,
    write_choice_tables,
)
from tests.bench.scoring.timing import Seconds, interleaved, paired_ratio

N_BEST, N_DOMAINS, PER_DOMAIN = 1_000, 12, 100
HELD_OUT = 2  # the model that `hold_out` leaves out
FILTERS = [
    {"name": "refusal", "rule": "v1"},
    {"name": "length", "min_chars": 20, "max_chars": 4_000},
    {"name": "domain", "exclude": ["domain-3"]},
]
Way = Callable[[tuple[int, ...]], list[str]]
ALL = tuple(range(K))
FEWER = tuple(k for k in ALL if k != HELD_OUT)


def top(folder: Path, repeats: int) -> list[Figure]:
    """The three figures of the best 1,000: cold, warm, and warm with a changed hold_out."""
    found = [_figure("cold", _cold(folder, repeats))]
    ways = _warm(folder)
    for name, models in (("warm", ALL), ("warm, changed hold_out", FEWER)):
        chosen = {way: call(models) for way, call in ways.items()}
        assert all(ids == chosen["ours"] for ids in chosen.values()), "the ways disagree on the best rows"
        timed = {way: _fresh(way, call, models) for way, call in ways.items()}
        found.append(_figure(name, interleaved(timed, repeats)))
    return found


def _fresh(way: str, call: Way, models: tuple[int, ...]) -> Callable[[], object]:
    return lambda: call(models)


def _figure(state: str, seconds: Seconds) -> Figure:
    peers = {name: found for name, found in seconds.items() if name != "ours"}
    fastest = min(peers, key=lambda name: median(peers[name]))
    return figure(
        f"top {N_BEST:,} by gap, K = {K}, filters on, {state}", "the faster of Polars and DuckDB", 1.0,
        paired_ratio(peers[fastest], seconds["ours"]), seconds, fastest_peer=fastest,
    )  # fmt: skip


def strata(folder: Path, repeats: int) -> Figure:
    """12 domains x 100 beside DuckDB's window function."""
    with _duckdb(folder, in_memory=True) as connection:
        wide = read_wide(folder / COLUMNS_FILE)
        ways: dict[str, Callable[[], list[str]]] = {
            "ours": lambda: _our_strata(wide),
            "duckdb": lambda: _duckdb_strata(connection),
        }
        chosen = {name: sorted(way()) for name, way in ways.items()}
        assert chosen["ours"] == chosen["duckdb"], "the ways disagree on the best rows"
        seconds = interleaved(ways, repeats)
    return figure(
        f"{N_DOMAINS} domains x {PER_DOMAIN}", "DuckDB window function", 8.0,
        paired_ratio(seconds["duckdb"], seconds["ours"]), seconds,
    )  # fmt: skip


def candidates(wide: Wide, models: tuple[int, ...]) -> Candidates:
    """The pool as `curator.mix.resolve` lays it out, with nothing kept from an earlier choice."""
    choice = wide.choice("gap_rel", [wide.members[1 + k].scorer_id for k in models], GapSpec())
    wide.forget()
    return Candidates(wide.ids, wide.scores(choice), wide.refuses, wide.labels, wide.numbers)


def our_best(wide: Wide, models: tuple[int, ...]) -> list[str]:
    """Ids of the best rows, best first."""
    pool = Pool.model_validate({"corpus": "bench", "filters": FILTERS})
    rows = candidates(wide, models)
    return rows.ids.texts(select(rows, N_BEST, filters=pool.filters, strategy=pool.strategy).chosen)


def _our_strata(wide: Wide) -> list[str]:
    strategy = {"name": "stratified", "by": "domain", "quotas": "equal", "pick": "top_gap"}
    pool = Pool.model_validate({"corpus": "bench", "strategy": strategy})
    rows = candidates(wide, ALL)
    chosen: Indices = select(rows, N_DOMAINS * PER_DOMAIN, strategy=pool.strategy).chosen
    return rows.ids.texts(chosen)


# The peers write the gap out as their users would; in the product it stands in sql/ alone.
def _polars_best(frame: Any, models: tuple[int, ...]) -> list[str]:
    pl = peer("polars")
    mean = sum(pl.col(f"m{k}") for k in models) / len(models)
    found = (
        frame.lazy()
        .filter(~pl.col("refusal"), pl.col("n_chars").is_between(20, 4_000), pl.col("domain") != "domain-3")
        .select("hi", "lo", gap=(mean - pl.col("aligned")) / (pl.col("aligned") + 1.0))
        .top_k(N_BEST, by=["gap", "hi", "lo"], reverse=[False, True, True])
        .collect()
        .sort(["gap", "hi", "lo"], descending=[True, False, False])
    )
    return _texts(found["hi"].to_numpy(), found["lo"].to_numpy())


def _duckdb_best(connection: Any, models: tuple[int, ...]) -> list[str]:
    mean = "(" + " + ".join(f"m{k}" for k in models) + f") / {len(models)}"
    found = connection.execute(
        f"select hi, lo, ({mean} - aligned) / (aligned + 1.0) as gap from pool "
        "where not refusal and n_chars between 20 and 4000 and domain <> 'domain-3' "
        f"order by gap desc, hi, lo limit {N_BEST}"
    ).fetchnumpy()
    return _texts(found["hi"], found["lo"])


def _duckdb_strata(connection: Any) -> list[str]:
    mean = "(" + " + ".join(f"m{k}" for k in ALL) + f") / {K}"
    found = connection.execute(
        f"select hi, lo, ({mean} - aligned) / (aligned + 1.0) as gap from pool qualify "
        f"row_number() over (partition by domain order by gap desc, hi, lo) <= {PER_DOMAIN}"
    ).fetchnumpy()
    return _texts(found["hi"], found["lo"])


def _texts(first: Any, last: Any) -> list[str]:
    halves = np.stack([np.asarray(first, np.uint64), np.asarray(last, np.uint64)], axis=1).astype(">u8")
    text = halves.tobytes().hex()
    return [text[start : start + 32] for start in range(0, len(text), 32)]


def _warm(folder: Path) -> dict[str, Way]:
    wide = read_wide(folder / COLUMNS_FILE)
    frame = peer("polars").read_parquet(folder / PEER_FILE)
    connection = _open_duckdb(folder, in_memory=True)
    return {
        "ours": lambda models: our_best(wide, models),
        "polars": lambda models: _polars_best(frame, models),
        "duckdb": lambda models: _duckdb_best(connection, models),
    }


def _open_duckdb(folder: Path, *, in_memory: bool) -> Any:
    connection = peer("duckdb").connect()
    kind = "table" if in_memory else "view"
    connection.execute(f"create {kind} pool as select * from read_parquet('{folder / PEER_FILE}')")
    return connection


@contextmanager
def _duckdb(folder: Path, *, in_memory: bool) -> Iterator[Any]:
    connection = _open_duckdb(folder, in_memory=in_memory)
    try:
        yield connection
    finally:
        connection.close()


COLD: Mapping[str, Callable[[Path], list[str]]] = {
    "ours": lambda folder: our_best(read_wide(folder / COLUMNS_FILE), ALL),
    "polars": lambda folder: _polars_best(peer("polars").scan_parquet(folder / PEER_FILE), ALL),
    "duckdb": lambda folder: _duckdb_best(_open_duckdb(folder, in_memory=False), ALL),
}


def _cold(folder: Path, repeats: int) -> Seconds:
    """Seconds from the first look at the file to the ids, each in a process of its own."""
    seconds: Seconds = {name: [] for name in COLD}
    chosen = set()
    with Progress(repeats * len(COLD), "processes", "cold choices") as bar:
        for turn in range(repeats):
            names = list(COLD)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found = _in_new_process(name, folder)
                seconds[name].append(found["seconds"])
                chosen.add(found["ids_sha256"])
                bar.advance(1)
    assert len(chosen) == 1, "the ways disagree on the best rows"
    return seconds


def _in_new_process(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.mixing.cold", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ScoringError(f"the cold run of {name} failed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def prepare(folder: Path, n_rows: int) -> dict[str, float]:
    """Write the tables that all ways read; returns seconds by step."""
    return write_choice_tables(folder, n_rows, N_DOMAINS)
