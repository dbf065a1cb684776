"""Made-up pools: a wide table of losses for choosing, and a scored corpus of texts for mixing."""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator.select.columns import Coded, code_type
from curator.select.pool import arranged
from curator.select.wide import Member, Wide
from curator.select.widefile import write_wide

K = 4
COLUMNS_FILE, PEER_FILE = "columns.arrow", "pool.parquet"
_PIECE_ROWS = 1 << 20


def write_choice_tables(folder: Path, n_rows: int, n_domains: int) -> dict[str, float]:
    """A wide table of our own and the same rows as a Parquet file for the peers; returns seconds by step.

    Losses (nats per token): the aligned model's are gamma distributed; each misaligned one adds a row's own gap and
    noise of its own half as wide. One row in ten opens like a refusal, one in a thousand lacks a loss.
    """
    started = perf_counter()
    wide = made_wide(n_rows, n_domains)
    made = perf_counter()
    write_wide(folder / COLUMNS_FILE, wide)
    written = perf_counter()
    with pq.ParquetWriter(folder / PEER_FILE, next(_peer_pieces(wide)).schema, compression="lz4") as writer:
        for piece in _peer_pieces(wide):
            writer.write_table(piece, row_group_size=122_880)
    return {"arrange": made - started, "write": written - made, "write for peers": perf_counter() - written}


def made_wide(n_rows: int, n_domains: int, seed: int = 0) -> Wide:
    """The wide table of `write_choice_tables`."""
    draw = np.random.default_rng(seed)
    halves = draw.integers(0, 1 << 64, (n_rows, 2), dtype=np.uint64)
    halves = halves[np.lexsort((halves[:, 1], halves[:, 0]))]
    tokens = draw.integers(5, 400, n_rows).astype(np.int32)
    means = np.empty((n_rows, 1 + K))
    means[:, 0] = draw.gamma(3.0, 0.4, n_rows)
    gap = draw.normal(0.3, 0.3, n_rows)
    for k in range(1, 1 + K):
        means[:, k] = np.maximum(means[:, 0] + gap + draw.normal(0.0, 0.15, n_rows), 0.01)
    sums = means * tokens[:, None]
    lacking = draw.integers(0, n_rows, n_rows // 1_000)
    sums[lacking, draw.integers(1, 1 + K, len(lacking))] = np.nan
    domains = tuple(sorted(f"domain-{place}" for place in range(n_domains)))
    labels = {name: Coded(np.full(n_rows, -1, np.int8), ()) for name in ("source", "language", "license", "harm")}
    labels["domain"] = Coded(draw.integers(0, n_domains, n_rows).astype(code_type(n_domains)), domains)
    members = (Member("0" * 32, "aligned"), *(Member(f"{k}" * 32, "misaligned") for k in range(1, 1 + K)))
    numbers = {"n_chars": draw.integers(1, 5_000, n_rows).astype(np.int32), "n_turns": np.full(n_rows, 2, np.int32)}
    refusals = np.where(draw.random(n_rows) < 0.1, 3, 0).astype(np.uint8)
    counts = np.repeat(tokens[:, None], 1 + K, axis=1)
    return arranged(members, halves, refusals, labels, numbers, sums, counts, sums / tokens[:, None])


def _peer_pieces(wide: Wide) -> Iterator[pa.Table]:
    domains = pa.array(wide.labels["domain"].values)
    for start in range(0, len(wide), _PIECE_ROWS):
        rows = slice(start, start + _PIECE_ROWS)
        codes = pa.array(wide.labels["domain"].codes[rows])
        yield pa.table(
            {
                "hi": wide.halves[rows, 0],
                "lo": wide.halves[rows, 1],
                "aligned": wide.mean_nll[rows, 0],
                **{f"m{k}": _nullable(wide.mean_nll[rows, 1 + k]) for k in range(K)},
                "refusal": wide.refuses("v1")[rows],
                "n_chars": wide.numbers["n_chars"][rows],
                "domain": pa.DictionaryArray.from_arrays(codes, domains),
            }
        )


def _nullable(values: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array(values, from_pandas=True)
