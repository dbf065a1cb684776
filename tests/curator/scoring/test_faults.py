"""Rows that an engine cannot score are found and marked; an engine that is broken ends the run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.corpus.ingest import ingest
from curator.errors import ScoringError
from curator.render import Rendered, Renderer
from curator.scoring import RowLoss, ScoreRequest, score_corpus
from curator.scoring.faults import (
    FOLDER,
    GONE_AFTER_S,
    MAX_DEATHS,
    Attempt,
    EngineDiedError,
    FaultTolerantEngine,
    declare_dead,
    is_gone,
    this_process,
)
from curator.scoring.parts import sweep_temporary
from curator.store.store import Store
from tests.models import random_conversations, tiny_tokenizer_folder


def make_row(token: int, length: int = 6) -> Rendered:
    return Rendered(np.full(length, token, dtype=np.int32), np.array([False] + [True] * (length - 1)))


class Choosy:
    """Raises on calls that hold a poison token; `limit` bounds the rows of a call; `stay_dead` never recovers."""

    name, version, dtype = "torch", "test", "float32"

    def __init__(self, poison: Sequence[int] = (), limit: int = 10**9, stay_dead: bool = False) -> None:
        self.poison, self.limit, self.stay_dead, self.dead, self.n_rows = set(poison), limit, stay_dead, False, 0

    def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
        self.n_rows += len(rows)
        losses = []
        for row in rows:
            if self.dead or self.poison.intersection(row.input_ids.tolist()[3:]):
                self.dead = self.stay_dead
                raise ValueError("bad token")
            if on_rows is not None:
                on_rows(1, row.n_tokens)  # type: ignore[operator]
            losses.append(RowLoss(float(row.input_ids[0]), row.n_tokens - 1))
        if len(rows) > self.limit:
            raise MemoryError("too many rows")
        return losses

    def use_adapter(self, path: Path | None) -> None:
        pass

    def close(self) -> None:
        pass


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_exactly_the_poison_rows_are_marked(n: int, data: st.DataObject) -> None:
    poison = data.draw(st.sets(st.integers(0, n - 1), max_size=max(0, n - 1)))
    engine = Choosy(poison, limit=data.draw(st.integers(1, 60)))
    seen = [0, 0]

    def on_rows(n_rows: int, n_tokens: int) -> None:
        seen[0] += n_rows

    found = FaultTolerantEngine(engine, on_rows).score([make_row(token) for token in range(n)])
    for token, outcome in enumerate(found):
        if token in poison:
            assert outcome == "engine error: ValueError: bad token"
        else:
            assert outcome == RowLoss(float(token), 5)
    assert seen[0] == n  # progress counts each row once, however often it was tried


def test_finding_one_row_costs_a_few_passes() -> None:
    engine = Choosy([700])
    FaultTolerantEngine(engine).score([make_row(token) for token in range(1024)])
    assert engine.n_rows < 3.1 * 1024


def test_an_engine_that_fails_on_everything_ends_the_run() -> None:
    dead = Choosy(stay_dead=True)
    dead.dead = True
    with pytest.raises(ScoringError, match="fails on rows it should score; first engine error: ValueError: bad token"):
        FaultTolerantEngine(dead).score([make_row(1), make_row(2)])
    engine = FaultTolerantEngine(Choosy([7], stay_dead=True))
    engine.score([make_row(1)])
    with pytest.raises(EngineDiedError, match="bad token"):
        engine.score([make_row(7)])


def test_out_of_memory_is_named_and_errors_of_ours_are_not_caught() -> None:
    class Full(Choosy):
        def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
            if any(row.n_tokens > 10 for row in rows):
                raise MemoryError("no room")
            return super().score(rows)

    assert FaultTolerantEngine(Full()).score([make_row(1), make_row(2, 11)])[1] == "out of memory: MemoryError: no room"

    class Wrong(Choosy):
        def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
            raise ScoringError("another model's tokenizer")

    with pytest.raises(ScoringError, match="another model's tokenizer"):
        FaultTolerantEngine(Wrong()).score([make_row(1), make_row(2)])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    file = tmp_path / "chats.jsonl"
    rows = [json.dumps({"messages": messages}) for messages in random_conversations(30, seed=4)]
    file.write_text("\n".join(rows) + "\n")
    ingest(store, [file], "chats")
    return store


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What the book-keeping reads of a model: a tokenizer, a configuration, and weights to hash."""
    folder = tiny_tokenizer_folder(tmp_path / "model")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


def test_a_run_with_poison_rows_ends_well_and_says_why(store: Store, model: Path) -> None:
    renderer = Renderer.from_folder(model)
    request = ScoreRequest("chats", model, "aligned", engine_version="test", block_tokens=400)
    lengths: list[int] = []

    class Odd(Choosy):
        def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
            if any(row.n_tokens % 5 == 0 for row in rows):
                raise ValueError("a fifth is bad")
            lengths.extend(row.n_tokens for row in rows)
            return [RowLoss(1.0, int(row.response_mask[1:].sum())) for row in rows]

    report = score_corpus(store, request, renderer, Odd)
    assert report.status_counts["failed"] + report.status_counts["scored"] == 30
    assert report.status_counts["failed"] >= 2
    folder = f"scores/chats/{report.scorer_id}"
    for part in store.list(folder, "part-*.parquet"):
        for row in store.read_table(f"{folder}/{part}").to_pylist():
            bad = row["n_tokens"] % 5 == 0
            assert row["status"] == ("failed" if bad else "scored")
            assert row["reason"] == ("engine error: ValueError: a fifth is bad" if bad else None)
            assert (row["nll_sum"] is None) == bad
    assert any("are marked failed" in warning for warning in report.warnings)
    assert store.list(f"{folder}/{FOLDER}") == []


def begin_and_die(store: Store, ids: list[str], *rows: str | None) -> None:
    """What a process that died leaves: its last note, by an id that no process of that start has."""
    attempt = Attempt(store, "scores/x/y", ids)
    for row in rows:
        attempt.begin(row)
    path = attempt._path
    note = store.read_json(path)
    store.write_json(path, note | {"by": note["by"] | {"started": 1}})


def test_a_row_is_blamed_after_deaths_alone_and_never_for_its_company(store: Store) -> None:
    ids = ["a", "b"]
    assert not Attempt(store, "scores/x/y", ids).careful
    begin_and_die(store, ids, None)  # with the whole block
    for n_deaths in range(MAX_DEATHS):
        attempt = Attempt(store, "scores/x/y", ids)
        assert attempt.careful
        assert attempt.deadly("a") is None
        assert attempt.deadly("b") is None, n_deaths
        begin_and_die(store, ids, "a", "b")
    last = Attempt(store, "scores/x/y", ids)
    assert last.deadly("b") == "the process died 2 times while it scored this row alone"
    assert last.deadly("a") is None
    last.begin("a")
    last.settle()  # an orderly end blames nobody and forgets nothing
    assert Attempt(store, "scores/x/y", ids).deadly("b")
    assert not Attempt(store, "scores/x/y", ["c"]).careful  # another block
    last.done()
    assert not Attempt(store, "scores/x/y", ids).careful


def test_who_started_a_worker_may_declare_it_dead_wherever_it_ran(store: Store) -> None:
    ids = ["a", "b"]
    for worker in ("first", "second"):
        attempt = Attempt(store, "scores/x/y", ids, worker)
        attempt.begin()
        note = store.read_json(attempt._path)
        store.write_json(attempt._path, note | {"by": note["by"] | {"place": "another machine"}})
    assert not Attempt(store, "scores/x/y", ids).careful  # both may live
    declare_dead(store, "scores/x/y", ["c"], "first")  # not at that block
    assert not Attempt(store, "scores/x/y", ids).careful
    declare_dead(store, "scores/x/y", ids, "first")
    assert Attempt(store, "scores/x/y", ids).careful
    assert [store.read_json(f"scores/x/y/{FOLDER}/{name}")["by"] is None
            for name in store.list(f"scores/x/y/{FOLDER}")].count(True) == 1  # fmt: skip


def test_staggered_workers_that_live_blame_no_row(store: Store) -> None:
    ids = ["a", "b"]
    begin_and_die(store, ids, None)
    for _ in range(MAX_DEATHS + 1):  # each finds the others at work on the first row
        worker = Attempt(store, "scores/x/y", ids)
        assert worker.careful
        assert worker.deadly("a") is None
        worker.begin("a")


def test_of_two_that_begin_one_block_the_later_leaves_it(store: Store) -> None:
    ids = ["a", "b"]
    first, second = (Attempt(store, "scores/x/y", ids) for _ in range(2))
    assert not first.taken
    assert not second.taken  # both looked before either began
    first.begin()
    second.begin()
    assert (first.late(), second.late()) == (False, True)
    first.begin("b")  # renewed, and still the earlier
    assert (first.late(), second.late()) == (False, True)
    second.settle()
    assert Attempt(store, "scores/x/y", ids).taken
    assert not Attempt(store, "scores/x/y", ["c"]).taken
    first.done()
    assert not Attempt(store, "scores/x/y", ids).taken
    begin_and_die(store, ids, None)
    assert not Attempt(store, "scores/x/y", ids).taken


def test_one_workers_end_leaves_anothers_note(store: Store) -> None:
    ids = ["a"]
    first, second = (Attempt(store, "scores/x/y", ids) for _ in range(2))
    first.begin("a")
    second.begin("a")
    first.done()
    second.died()  # its engine, not the process
    assert Attempt(store, "scores/x/y", ids).careful


def test_who_is_surely_gone() -> None:
    me, now = this_process(), time.time()
    assert me["started"] is not None
    assert not is_gone(me, 0.0)  # however old the note
    assert is_gone(me | {"started": me["started"] - 1}, now)  # the id was given out again
    assert is_gone(None, now)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        other = me | {"pid": child.pid, "started": started}
        assert not is_gone(other, now)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not waited for yet
        assert is_gone(other, now)
    assert is_gone(other, now)
    elsewhere = me | {"place": "another machine"}
    assert not is_gone(elsewhere, now - GONE_AFTER_S / 2)
    assert is_gone(elsewhere, now - GONE_AFTER_S - 1)


def test_half_written_files_of_dead_processes_are_swept(store: Store) -> None:
    folder = store.local_path("scores/chats/x")
    assert folder is not None
    folder.mkdir(parents=True)
    names = {
        "old and dead": ".tmp-part-a.parquet-999999999-00ff",
        "young": ".tmp-part-b.parquet-999999999-00ff",
        "alive": f".tmp-part-c.parquet-{os.getpid()}-00ff",
    }
    for name in names.values():
        (folder / name).write_bytes(b"half")
    for kind in ("old and dead", "alive"):
        os.utime(folder / names[kind], (0, 0))
    assert sweep_temporary(store, "scores/chats/x") == [names["old and dead"]]
    assert {path.name for path in folder.iterdir()} == {names["young"], names["alive"]}
