"""What pools hold, for whoever looks at a whole corpus: every row's gap for `gap_rows`, and single conversations.

Nothing here makes a pool: where its file is not there, the answer is None, and SQL over the store's parts does.
"""

from collections.abc import Sequence

from curator.corpus.manifest import Corpus, Scorer, read_scorers
from curator.query.gaps import GapSpec, PoolGaps
from curator.select.pool import POOLS, PoolCache, PoolTable, scorers_of_measure
from curator.select.pool_frame import LABELS
from curator.store.store import Store


def pool_gaps(
    store: Store, corpus: Corpus, hold_out: Sequence[str], eps: float, cache: PoolCache = POOLS
) -> PoolGaps | None:
    """Every row's gap under each complete aligned scorer, from pools that are there.

    None where one of them is not, or where a gap would have no misaligned scorer: then `gap_rows` joins the losses
    itself, and refuses what cannot be.
    """
    tables, counts = {}, {}
    for scorers, table in _aligned_tables(store, corpus, cache):
        left = [item.scorer_id for item in scorers if item.domain is None or item.domain not in hold_out]
        choice = table.choice("gap_rel", left, GapSpec(eps=eps))
        if not choice.misaligned:
            return None
        rows = table.columns("n_turns", "n_chars", "n_response_tokens", *LABELS)
        gaps = rows.hstack(table.gap_columns(choice)).to_arrow()
        tables[scorers[0].scorer_id] = gaps.append_column("example_id", table.ids.column)
        counts[scorers[0].scorer_id] = len(choice.misaligned)
    return PoolGaps(corpus.name, tuple(hold_out), eps, tables, counts) if tables else None


def pool_messages(store: Store, corpus: Corpus, ids: Sequence[str], cache: PoolCache = POOLS) -> dict[str, str] | None:
    """The messages of some conversations, as canonical JSON by id; None where no pool is there."""
    tables = _aligned_tables(store, corpus, cache)
    if not tables:
        return None
    _, table = tables[0]
    rows = table.ids.find(ids)
    return dict(zip(table.ids.texts(rows), table.texts(rows), strict=True))


def _aligned_tables(store: Store, corpus: Corpus, cache: PoolCache) -> list[tuple[list[Scorer], PoolTable]]:
    """The pool of each complete aligned scorer, beside its scorers; none unless all of them are there."""
    found = []
    for scorer in read_scorers(store, corpus):
        if scorer.role == "aligned" and scorer.complete:
            scorers = scorers_of_measure(store, corpus, scorer)
            table = cache.find(store, corpus, scorers)
            if table is None:
                return []
            found.append((scorers, table))
    return found
