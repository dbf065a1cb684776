"""The views on a plain DuckDB connection, and the gap computed by hand.

Imports `sql` for the text of the views and nothing else of ours: the oracle below knows only the method's formulas.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb

import sql

Losses = Mapping[str, tuple[float | None, int | None]]  # example id -> (nll_sum, n_response_tokens)

_TABLES = """
create table corpora (corpus varchar, revision varchar, n_examples bigint);
create table example_parts (
    corpus varchar, example_id varchar, messages varchar, n_turns integer, n_assistant_turns integer, n_chars integer,
    response_head varchar, domain varchar, language varchar, license varchar, harm varchar
);
create table source_parts (
    corpus varchar, ingest bigint, example_id varchar, source varchar, source_id varchar, record bigint, file varchar
);
create table reject_parts (
    corpus varchar, ingest bigint, source varchar, record bigint, line bigint, byte_offset bigint, pointer varchar,
    code varchar, message varchar
);
create table scorer_files (
    corpus varchar, scorer_id varchar, label varchar, role varchar, scorer_domain varchar, measure_id varchar,
    renderer_id varchar, revision varchar, sample_n bigint, sample_seed bigint, complete boolean, n_rows bigint,
    n_tokens bigint, seconds double, identity varchar
);
create table score_parts (
    corpus varchar, scorer_id varchar, example_id varchar, status varchar, nll_sum double, n_response_tokens integer,
    n_tokens integer, reason varchar
)
"""


@dataclass(frozen=True)
class Model:
    """One scorer and its losses; an example that `losses` lacks has no row."""

    scorer_id: str
    role: str
    losses: Losses
    domain: str | None = None
    measure_id: str = "m"
    complete: bool = True


@contextmanager
def gap_database(
    examples: Sequence[str], models: Sequence[Model], corpus: str = "c"
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with all views over these examples and models."""
    with duckdb.connect() as connection:
        connection.execute(_TABLES)
        add_corpus(connection, examples, models, corpus)
        for name in sql.VIEWS:
            connection.execute(sql.view_text(name))
        yield connection


def add_corpus(
    connection: duckdb.DuckDBPyConnection, examples: Sequence[str], models: Sequence[Model], corpus: str
) -> None:
    connection.execute("insert into corpora values ($c, 'r', $n)", {"c": corpus, "n": len(examples)})
    for record, key in enumerate(examples, start=1):
        connection.execute(
            "insert into example_parts values ($c, $k, '[]', 2, 1, 5, 'yes', null, null, null, null)",
            {"c": corpus, "k": key},
        )
        connection.execute(
            "insert into source_parts values ($c, 0, $k, 'file', null, $n, null)", {"c": corpus, "k": key, "n": record}
        )
    for model in models:
        connection.execute(
            "insert into scorer_files values ($c, $s, $s, $r, $d, $m, 'r', 'r', null, null, $f, 0, 0, 0.0, '{}')",
            {
                "c": corpus, "s": model.scorer_id, "r": model.role, "d": model.domain, "m": model.measure_id,
                "f": model.complete,
            },
        )  # fmt: skip
        for key, (nll_sum, count) in model.losses.items():
            connection.execute(
                "insert into score_parts values ($c, $s, $k, $t, $l, $n, 9, null)",
                {
                    "c": corpus, "s": model.scorer_id, "k": key, "l": nll_sum, "n": count,
                    "t": "failed" if nll_sum is None else "scored",
                },
            )  # fmt: skip


@dataclass(frozen=True)
class Gap:
    """What a row's gap should be; None stands for null."""

    mean_aligned: float | None
    mean_misaligned: float | None
    gap_abs: float | None
    gap_rel: float | None
    n_missing: int
    complete: bool


def mean_by_hand(loss: tuple[float | None, int | None] | None) -> float | None:
    if loss is None or loss[0] is None or not loss[1] or not math.isfinite(loss[0]):
        return None
    return loss[0] / loss[1]


def gap_by_hand(key: str, aligned: Losses, misaligned: Sequence[Losses], eps: float) -> Gap:
    """The gap of one example: mean over all the misaligned models, or nothing (method, section 2)."""
    low = mean_by_hand(aligned.get(key))
    means = [mean_by_hand(losses.get(key)) for losses in misaligned]
    present = [mean for mean in means if mean is not None]
    high = sum(present) / len(present) if present and len(present) == len(means) else None
    n_missing = len(means) - len(present) + (low is None)
    if low is None or high is None:
        return Gap(low, high, None, None, n_missing, False)
    divisor = low + eps
    return Gap(low, high, high - low, (high - low) / divisor if divisor else None, n_missing, True)
