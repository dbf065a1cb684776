"""The best rows of a large pool: `curator.select` beside bare Polars and DuckDB over the same frame or its file.

All apply the same filters and rank by the same gap; ours also counts, for every row, why it was left out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from curator.query.gaps import Gaps, GapSpec
from curator.recipe import Pool
from curator.select.candidates import Candidates
from curator.select.pool_columns import PoolColumns, PoolIds, map_frame
from curator.select.pool_frame import id_texts
from curator.select.scores import GapChoice, GapScores
from curator.select.select import PoolSelection, SelectionRequest, select
from tests.bench.mixing.figures import Figure, figure
from tests.bench.mixing.peers import peer
from tests.bench.mixing.rows import (
    MEMBERS,
    OUR_FILE,
    POOL_FILE,
    K,
    write_pool,
)
from tests.bench.scoring.timing import interleaved, paired_ratio

N_BEST, N_DOMAINS, PER_DOMAIN = 1_000, 12, 100
HELD_OUT = 3  # the member that `hold_out` leaves out
FILTERS = [
    {"name": "refusal", "rule": "v1"},
    {"name": "length", "min_chars": 20, "max_chars": 4_000},
    {"name": "domain", "exclude": ["domain-3"]},
]
ALL = tuple(range(1, 1 + K))
FEWER = tuple(k for k in ALL if k != HELD_OUT)
_GAPS = Gaps()


def top(folder: Path, repeats: int) -> list[Figure]:
    """The best 1,000 rows: frame in memory, with a changed hold_out, with every row's reason, and from the file."""
    file = folder / POOL_FILE
    columns, frame = _columns(folder), pl.read_parquet(file).rechunk()

    def bare(models: tuple[int, ...]) -> Callable[[], list[str]]:
        return lambda: _polars_best(frame.lazy(), models)

    return [
        _figure("frame in memory", 1.5, lambda: our_best(columns, ALL), bare(ALL), repeats),
        _figure("frame in memory, changed hold_out", 1.5, lambda: our_best(columns, FEWER), bare(FEWER), repeats),
        _figure("with every row's reason", 4.0, lambda: _with_reasons(columns), bare(ALL), repeats),
        _figure(
            "lazily from the file", 1.3, lambda: our_best(_columns(folder), ALL),
            lambda: _polars_best(pl.scan_parquet(file), ALL), repeats,
        ),
        _figure(
            "lazily from the file, the peer by our stored gap", 1.3, lambda: our_best(_columns(folder), ALL),
            lambda: _polars_best(pl.scan_parquet(file), ()), repeats,
        ),
    ]  # fmt: skip


def _columns(folder: Path) -> PoolColumns:
    """The pool as a new process finds it."""
    return PoolColumns(map_frame(folder / OUR_FILE)[0])


def _figure(
    state: str, most: float, ours: Callable[[], list[str]], bare: Callable[[], list[str]], repeats: int
) -> Figure:
    """Ours may take `most` times as long as bare Polars."""
    assert ours() == bare(), "the ways disagree on the best rows"
    seconds = interleaved({"ours": ours, "polars": bare}, repeats)
    return figure(
        f"top {N_BEST:,} by gap, K = {K}, filters on and their counts, {state}",
        "bare Polars: the same filters and top_k, no counts", round(1 / most, 2),
        paired_ratio(seconds["polars"], seconds["ours"]), seconds, choices=True,
    )  # fmt: skip


def strata(folder: Path, repeats: int) -> Figure:
    """12 domains x 100 beside DuckDB's window function."""
    connection = peer("duckdb").connect()
    try:
        connection.execute(f"create table pool as select * from read_parquet('{folder / POOL_FILE}')")
        columns = _columns(folder)
        ways: dict[str, Callable[[], list[str]]] = {
            "ours": lambda: _our_strata(columns),
            "duckdb": lambda: _duckdb_strata(connection),
        }
        chosen = {name: sorted(way()) for name, way in ways.items()}
        assert chosen["ours"] == chosen["duckdb"], "the ways disagree on the best rows"
        seconds = interleaved(ways, repeats)
    finally:
        connection.close()
    return figure(
        f"{N_DOMAINS} domains x {PER_DOMAIN}", "DuckDB window function", 8.0,
        paired_ratio(seconds["duckdb"], seconds["ours"]), seconds,
    )  # fmt: skip


def candidates(columns: PoolColumns, models: tuple[int, ...]) -> Candidates:
    """The pool as `curator.mix.resolve` lays it out, with nothing kept from an earlier choice."""
    choice = GapChoice("gap_rel", models, (), GapSpec(), len(models) == len(MEMBERS) - 1)
    n_rows = columns("refusal_v1").height
    return Candidates(n_rows, columns, PoolIds(columns), GapScores(n_rows, columns, _GAPS, choice))


def our_best(columns: PoolColumns, models: tuple[int, ...]) -> list[str]:
    """Ids of the best rows, best first."""
    rows = candidates(columns, models)
    selection = _select(rows)
    assert sum(selection.result.dropped.values()) + selection.n_eligible == len(rows)
    return rows.ids.texts(selection.chosen)


def _with_reasons(columns: PoolColumns) -> list[str]:
    rows = candidates(columns, ALL)
    selection = _select(rows)
    assert selection.result.reason_column.null_count() == selection.n_eligible
    return rows.ids.texts(selection.chosen)


def _select(rows: Candidates) -> PoolSelection:
    pool = Pool.model_validate({"corpus": "bench", "filters": FILTERS})
    return select(rows, SelectionRequest(N_BEST, filters=pool.filters, strategy=pool.strategy))


def _our_strata(columns: PoolColumns) -> list[str]:
    strategy = {"name": "stratified", "by": "domain", "quotas": "equal", "pick": "top_gap"}
    pool = Pool.model_validate({"corpus": "bench", "strategy": strategy})
    rows = candidates(columns, ALL)
    return rows.ids.texts(select(rows, SelectionRequest(N_DOMAINS * PER_DOMAIN, strategy=pool.strategy)).chosen)


# The peers write the gap out as their users would; in the product it stands in sql/ alone.
def _polars_best(pool: pl.LazyFrame, models: tuple[int, ...]) -> list[str]:
    # Without models: the column that the product stores, which a user of the file could take.
    gap = _gap(models) if models else pl.col("gap")
    found = (
        pool.filter(~pl.col("refusal_v1"), pl.col("n_chars").is_between(20, 4_000), pl.col("domain") != "domain-3")
        .select("id_hi", "id_lo", found=gap)
        .top_k(N_BEST, by=["found", "id_hi", "id_lo"], reverse=[False, True, True])
        .collect()
        .sort(["found", "id_hi", "id_lo"], descending=[True, False, False])
    )
    return id_texts(found["id_hi"].to_numpy(), found["id_lo"].to_numpy())


def _gap(models: tuple[int, ...]) -> pl.Expr:
    mean = sum((pl.col(f"mean_nll_{k}") for k in models[1:]), pl.col(f"mean_nll_{models[0]}")) / len(models)
    return (mean - pl.col("mean_nll_0")) / (pl.col("mean_nll_0") + 1.0)


def _duckdb_strata(connection: Any) -> list[str]:
    mean = "(" + " + ".join(f"mean_nll_{k}" for k in ALL) + f") / {K}"
    found = connection.execute(
        f"select id_hi, id_lo, ({mean} - mean_nll_0) / (mean_nll_0 + 1.0) as found from pool qualify "
        f"row_number() over (partition by domain order by found desc, id_hi, id_lo) <= {PER_DOMAIN}"
    ).fetchnumpy()
    return id_texts(found["id_hi"], found["id_lo"])


def prepare(folder: Path, n_rows: int) -> dict[str, float]:
    """Write the pool as our file and as the peers'; returns seconds by step."""
    return write_pool(folder, n_rows, N_DOMAINS)
