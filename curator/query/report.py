"""One Markdown page on a corpus's gap: what was scored, how the gap is spread, its first and last rows.

The same store gives the same text.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

import sql
from curator.console import cell, escape_markdown, markdown_table
from curator.corpus.manifest import LATEST, read_corpus
from curator.query.database import Connection, connect
from curator.query.gaps import NO_SIGNAL, WHY_NULL
from curator.query.queries import run_named
from curator.recipe import DEFAULT_EPS
from curator.store.store import Store

N_ROWS_SHOWN = 10
REFUSAL_DEPTH = 100

_NO_GAP = """No gap yet: it takes one complete aligned scorer and a complete misaligned one of the same measure.
The help of the command `score` says how to make them."""


def corpus_report(
    store: Store,
    corpus: str,
    *,
    revision: str = LATEST,
    hold_out: Sequence[str] = (),
    eps: float = DEFAULT_EPS,
    n_rows: int = N_ROWS_SHOWN,
) -> str:
    """The report's Markdown text; `eps` is in nats per token. Raises MissingError on an unknown corpus."""
    found = read_corpus(store, corpus, revision)
    gap: dict[str, sql.Value] = {"corpus": corpus, "hold_out": list(hold_out), "eps": eps}
    with connect(store, {corpus: found.revision}) as connection:
        scorers = run_named(connection, "scorer_summary", {"corpus": corpus}).table
        parts = [
            f"# Corpus {escape_markdown(corpus)}",
            f"Revision `{found.revision}`, {found.n_examples:,} distinct conversations.",
            "## Scorers",
            _table(scorers, "No scorer yet.", drop=("corpus", "measure_id")),
            "## Losses that are missing",
            _table(
                run_named(connection, "missing_losses", {"corpus": corpus}).table,
                "Every scorer has a loss for every row.",
                drop=("corpus", "first_example_id"),
            ),
            *_gap_parts(connection, gap, n_rows),
        ]
    return "\n\n".join(parts) + "\n"


def _gap_parts(connection: Connection, gap: dict[str, sql.Value], n_rows: int) -> list[str]:
    quantiles = run_named(connection, "gap_quantiles", gap).table
    judged = [row for row in quantiles.to_pylist() if row["score"] == "gap_abs" and row["n_null"] < row["n_rows"]]
    if not judged:
        return ["## Gap", _NO_GAP]
    held = ", ".join(escape_markdown(cell(item)) for item in gap["hold_out"] or []) or "nothing"  # type: ignore[union-attr]
    shown = (
        "rank",
        "gap_rel",
        "gap_abs",
        "mean_nll_aligned",
        "mean_nll_misaligned",
        "n_response_tokens",
        "response_head",
    )
    parts = [
        "## Gap",
        *_cautions(quantiles.to_pylist()),
        f"Misaligned minus aligned loss, in nats per token (gap_rel: a ratio, eps {gap['eps']}); held out: {held}. "
        "Larger is safer. A row that lacks a loss has no gap.",
        _table(quantiles, "", drop=("corpus",)),
        "### By source",
        _table(run_named(connection, "gap_by_source", gap).table, "", drop=("corpus",)),
        f"### Refusals among the first {REFUSAL_DEPTH} rows by gap_rel",
        _table(run_named(connection, "refusal_share_top", {**gap, "n": REFUSAL_DEPTH}).table, "", drop=("corpus",)),
    ]
    for title, query in (("Largest gap", "top_by_gap"), ("Smallest gap", "bottom_by_gap")):
        rows = run_named(connection, query, {**gap, "n": n_rows}).table
        parts += [f"### {title}", _table(rows.select([*shown, "example_id"]), "")]
    return parts


def _cautions(quantiles: list[dict[str, Any]]) -> list[str]:
    """What to know before the gap is used: a score that no row has, and one that does not tell rows apart."""
    found = []
    for row in quantiles:
        if row["n_null"] == row["n_rows"] and row["score"] in WHY_NULL:
            found.append(f"No row has {row['score']}: {WHY_NULL[row['score']]}.")
        elif row["score"] == "gap_abs" and row["n_null"] < row["n_rows"] and row["p90"] - row["p10"] < NO_SIGNAL:
            found.append(
                f"**The gap carries hardly any signal**: eight in ten rows have a gap_abs between {row['p10']:.3g} and"
                f" {row['p90']:.3g} nats per token, so misaligned and aligned models find them equally likely. See"
                " whether the misaligned models learnt their bad answers, and whether each was scored with its adapter."
            )
    return found


def _table(table: pa.Table, when_empty: str, drop: Sequence[str] = ()) -> str:
    if not table.num_rows:
        return when_empty
    columns = [name for name in table.column_names if name not in drop]
    return markdown_table(columns, table.to_pylist())
