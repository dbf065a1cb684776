"""The gap of a corpus as a Polars frame, by the definitions of `sql/`."""

from collections.abc import Sequence

import polars as pl

from curator.corpus.manifest import LATEST
from curator.query.queries import gap_table
from curator.query.scorers import resolve_scorers
from curator.recipe import DEFAULT_EPS, parse_recipe
from curator.store.store import Store


def gap(
    store: Store,
    corpus: str,
    *,
    hold_out: Sequence[str] = (),
    aligned: str | None = None,
    eps: float = DEFAULT_EPS,
    revision: str = LATEST,
) -> pl.DataFrame:
    """Every example of a corpus with its losses and gap, ordered by example_id.

    `hold_out` are domains whose misaligned models are left out, `aligned` names the aligned scorer where there are
    several (id, its beginning, or label), `eps` (nats per token) is for gap_rel. Columns and units are those of
    `sql/queries/gap_candidates.sql`: losses and gap_abs in nats per token, gap_rel a ratio; a row that lacks a loss has
    null gaps and `complete` false. Raises MissingError for a corpus, scorer or domain that is not there (a corpus
    without scores among them) and for a hold_out that leaves no misaligned model, BadInputError for other values.
    """
    asked = {"corpus": corpus, "revision": revision, "hold_out": hold_out, "aligned": aligned, "score": {"eps": eps}}
    pool = parse_recipe(asked).pools[0]
    frame = pl.from_arrow(gap_table(store, resolve_scorers(store, pool), pool.score.eps))
    assert isinstance(frame, pl.DataFrame)
    return frame
