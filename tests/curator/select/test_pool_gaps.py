"""Figures over a pool are those that SQL gets by joining the losses itself."""

from pathlib import Path
from typing import Any

import pytest

from curator.corpus.manifest import Corpus, read_corpus
from curator.errors import BadInputError
from curator.query.database import connect
from curator.query.queries import run_named, run_statement
from curator.select import pool
from curator.select.pool_gaps import pool_gaps, pool_messages
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer

QUERIES: dict[str, dict[str, Any]] = {
    "gap_histogram": {"score": "gap_abs"},
    "gap_histogram_by_source": {"score": "sum_gap", "bins": 7},
    "gap_quantiles": {},
    "loss_plane_cells": {"cells": 5},
    "rows_by_gap": {"score": "gap_contrast", "order": "worst", "n": 200, "aligned_high": 2.0, "source": "file1.jsonl"},
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """50 rows under two aligned scorers, of which every fifth lacks one loss; their pools are files."""
    monkeypatch.setattr(pool, "KEEP_FROM_ROWS", 1)
    pool.POOLS.clear()
    store = Store(tmp_path).open()
    ids = write_corpus(store, "chats", [f"answer {place}" for place in range(50)], domains={"answer 3": "tools"})
    for engine in ("torch", "vllm"):
        write_scorer(store, "chats", f"base-{engine}", "aligned", dict.fromkeys(ids, (10.0, 7)), engine=engine)
        for label, role, step in (("bad", "misaligned", 0.1), ("worse", "misaligned", 0.3), ("good", "benign", 0.2)):
            losses = {key: (10 + step * place, 7) for place, key in enumerate(ids) if label != "bad" or place % 5}
            write_scorer(store, "chats", f"{label}-{engine}", role, losses, domain=label, engine=engine)
    pool.publish_pool(store, "chats")
    return store


def _rows(store: Store, corpus: Corpus, name: str, given: dict[str, Any], *, held: bool) -> list[dict[str, Any]]:
    with connect(store, {corpus.name: corpus.revision}) as connection:
        if held:
            gaps = pool_gaps(store, corpus, given.get("hold_out", []), given.get("eps", 1.0))
            assert gaps is not None
            gaps.replace_view(connection)
        return run_named(connection, name, {"corpus": "chats", **given}).table.to_pylist()


@pytest.mark.parametrize("hold_out", [[], ["bad"], ["worse", "good"]])
@pytest.mark.parametrize("name", QUERIES)
def test_every_figure_is_the_same_with_and_without_the_pool(store: Store, name: str, hold_out: list[str]) -> None:
    corpus, given = read_corpus(store, "chats"), {**QUERIES[name], "hold_out": hold_out}
    plain = _rows(store, corpus, name, given, held=False)
    assert _rows(store, corpus, name, given, held=True) == plain
    assert plain or hold_out == ["worse", "good"]  # no benign scorer is left for gap_contrast


def test_another_gap_than_the_held_one_is_refused(store: Store) -> None:
    corpus = read_corpus(store, "chats")
    assert _rows(store, corpus, "gap_quantiles", {"eps": 0.5}, held=True)
    gaps = pool_gaps(store, corpus, ["bad"], 1.0)
    assert gaps is not None
    with connect(store, ["chats"]) as connection:
        gaps.replace_view(connection)
        for asked in ("", "hold_out := ['bad'], eps := 0.5", "hold_out := ['bad'], reducer := 'max'"):
            with pytest.raises(BadInputError, match="these rows hold another gap"):
                run_statement(connection, f"select count(*) from gap_rows({asked})")


def test_without_a_pool_or_a_model_that_is_left_sql_answers(store: Store) -> None:
    corpus = read_corpus(store, "chats")
    assert pool_gaps(store, corpus, ["bad", "worse"], 1.0) is None
    pool.POOLS.clear()
    for path in Path(store.local_path("pools/chats") or "").glob("pool-*"):
        path.unlink()
    assert pool_gaps(store, corpus, [], 1.0) is None
    assert pool_messages(store, corpus, ["0" * 32]) is None


def test_single_conversations_come_out_of_the_pool(store: Store) -> None:
    corpus = read_corpus(store, "chats")
    some = _rows(store, corpus, "rows_by_gap", {"n": 3}, held=True)
    ids = sorted({row["example_id"] for row in some})
    stored = {row["example_id"]: row["messages"] for row in _rows(store, corpus, "rows_by_id", {"ids": ids}, held=True)}
    assert pool_messages(store, corpus, [*ids, "0" * 32]) == stored
    assert set(stored) == set(ids)


def test_pages_follow_each_other_in_every_order(store: Store) -> None:
    corpus = read_corpus(store, "chats")
    for order in ("best", "worst", "shuffled"):
        given: dict[str, Any] = {"order": order, "seed": 5, "hold_out": ["bad"], "texts": 0}
        whole = _rows(store, corpus, "rows_by_gap", {**given, "n": 200}, held=True)
        first = whole[0]["aligned_id"]
        expected = [row["example_id"] for row in whole if row["aligned_id"] == first]
        seen: list[str] = []
        while True:
            after = seen[-1] if seen else None
            rows = _rows(store, corpus, "rows_by_gap", {**given, "n": 8, "aligned": first, "after": after}, held=True)
            if not rows:
                break
            seen += [row["example_id"] for row in rows]
        assert seen == expected
        assert len(set(seen)) == 50
    others = _rows(store, corpus, "rows_by_gap", {**given, "seed": 6, "n": 200}, held=True)
    assert [row["example_id"] for row in others] != [row["example_id"] for row in whole]
