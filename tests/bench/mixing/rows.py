"""Made-up pools to choose from: a pool file of losses without texts."""

from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import polars as pl

from curator.query.gaps import Gaps
from curator.select.pool_columns import write_frame
from curator.select.pool_frame import LABELS, Member, completed

K = 4
OUR_FILE = "pool.arrow"
POOL_FILE = "pool.parquet"  # the peers', which read Parquet faster than Arrow files
MEMBERS = (Member("0" * 32, "aligned"), *(Member(f"{k}" * 32, "misaligned") for k in range(1, 1 + K)))
_ROW_GROUP_ROWS = 1 << 18


def write_pool(folder: Path, n_rows: int, n_domains: int) -> dict[str, float]:
    """The same pool as our file and as the peers'; returns seconds by step."""
    started = perf_counter()
    frame = made_pool(n_rows, n_domains)
    made = perf_counter()
    write_frame(frame, folder / OUR_FILE, {})
    wrote = perf_counter()
    frame.write_parquet(folder / POOL_FILE, compression="lz4", row_group_size=_ROW_GROUP_ROWS)
    return {"make": made - started, "write": wrote - made}


def made_pool(n_rows: int, n_domains: int, seed: int = 0) -> pl.DataFrame:
    """The frame of a pool under one aligned and K misaligned scorers.

    Losses (nats per token): the aligned model's are gamma distributed; each misaligned one adds a row's own gap and
    noise of its own half as wide. One row in ten opens like a refusal, one in a thousand lacks a loss.
    """
    draw = np.random.default_rng(seed)
    halves = draw.integers(0, 1 << 64, (n_rows, 2), dtype=np.uint64)
    tokens = draw.integers(5, 400, n_rows).astype(np.int32)
    means = [draw.gamma(3.0, 0.4, n_rows)]
    gap = draw.normal(0.3, 0.3, n_rows)
    means += [np.maximum(means[0] + gap + draw.normal(0.0, 0.15, n_rows), 0.01) for _ in range(K)]
    lacking = draw.integers(0, n_rows, n_rows // 1_000)
    lacks = draw.integers(1, 1 + K, len(lacking))
    domain = draw.integers(0, n_domains, n_rows)
    refuses = draw.random(n_rows) < 0.1
    frame = pl.DataFrame(
        {
            "id_hi": halves[:, 0], "id_lo": halves[:, 1], "refusal_v1": refuses, "refusal_v2": refuses,
            "domain": pl.Series(domain).cast(pl.String), "n_turns": np.full(n_rows, 2, np.int32),
            "n_chars": draw.integers(1, 5_000, n_rows).astype(np.int32),
            "text_place": np.arange(n_rows, dtype=np.uint32),
        }
    )  # fmt: skip
    frame = frame.sort("id_hi", "id_lo").with_columns(
        pl.concat_str(pl.lit("domain-"), "domain").alias("domain"),
        *(pl.lit(None, pl.String).alias(name) for name in LABELS if name != "domain"),
    )
    losses = [
        pl.DataFrame({"nll_sum": _sums(mean, tokens, lacking[lacks == k]), "n_response_tokens": tokens})
        for k, mean in enumerate(means)
    ]
    return completed(frame, losses, MEMBERS, Gaps())


def _sums(means: npt.NDArray[np.float64], tokens: npt.NDArray[np.int32], lacking: npt.NDArray[np.int64]) -> pl.Series:
    sums = means * tokens
    sums[lacking] = np.nan
    return pl.Series(sums).fill_nan(None)
