"""Statements in processes that are forked from one with the views: nothing of one reaches another."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curator.errors import IntegrityError, MissingError
from curator.query.fork_server import ForkServer
from curator.query.sandbox_client import Sandbox, SqlLimits, StatementStoppedError
from curator.store.store import Store
from tests.gap_stores import write_corpus

LIMITS = SqlLimits(timeout_s=5.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    write_corpus(store, "chats", ["one", "two", "three"])
    return store


@pytest.fixture
def sandbox(store: Store) -> Iterator[Sandbox]:
    sandbox = Sandbox(lambda: store.base, LIMITS)
    yield sandbox
    sandbox.close()


def rows(sandbox: Sandbox, statement: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(sandbox.run(statement).data)["rows"]
    return found


def count(sandbox: Sandbox, corpus: str = "chats") -> int:
    (row,) = rows(sandbox, f"select count(*) as n from examples where corpus = '{corpus}'")
    return int(row["n"])


def children(server: ForkServer) -> list[int]:
    assert server._process is not None
    path = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_each_child_is_new_and_has_the_views_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_SECRET", "key")
    server = ForkServer("tests.curator.query.forked")
    try:
        answers = []
        for line in (b"first\n", b"second\n"):
            child = server.fork(store.base)
            try:
                child.stdin.write(line)
                child.stdin.close()
                answers.append(json.loads(child.stdout.read()))
            finally:
                child.end()
    finally:
        server.close()
    assert [answer["line"] for answer in answers] == ["first\n", "second\n"]
    assert len({answer["pid"] for answer in answers}) == 2
    for answer in answers:
        assert answer["sockets"] == []
        assert "BALLAST_SECRET" not in answer["environment"]
        assert answer["alone"]
        assert answer["has_views"], "a library starts a thread, so that every statement loads the views again"


def test_statements_draw_numbers_of_their_own(sandbox: Sandbox) -> None:
    found = [rows(sandbox, "select random() as number, gen_random_uuid() as name")[0] for _ in range(3)]
    assert len({row["number"] for row in found}) == len({row["name"] for row in found}) == 3


def test_a_change_of_the_store_is_seen_by_the_next_statement(sandbox: Sandbox, store: Store) -> None:
    assert count(sandbox) == 3
    write_corpus(store, "chats", ["one", "two", "three", "four"])
    write_corpus(store, "others", ["five"])
    assert (count(sandbox), count(sandbox, "others")) == (4, 1)
    store.delete("corpora/others")
    assert (count(sandbox), count(sandbox, "others")) == (4, 0)


def test_a_damaged_store_is_told_and_mended(sandbox: Sandbox, store: Store) -> None:
    path = "corpora/chats/corpus.json"
    whole = store.read_bytes(path)
    store.write_bytes(path, b"{")
    with pytest.raises(Exception, match="is not JSON") as told:
        sandbox.run("select 1 as n")
    assert not isinstance(told.value, StatementStoppedError | MissingError | IntegrityError)
    store.write_bytes(path, whole)
    assert count(sandbox) == 3


def test_a_statement_that_is_stopped_leaves_no_process_and_stops_no_other(store: Store) -> None:
    sandbox = Sandbox(lambda: store.base, SqlLimits(timeout_s=2.0))
    try:
        assert count(sandbox) == 3
        with pytest.raises(StatementStoppedError):
            sandbox.run("select count(*) as n from range(1000000000000) a, range(1000) b where a.range * b.range = 7")
        assert children(sandbox._server) == []
        assert count(sandbox) == 3
    finally:
        sandbox.close()


def test_a_killed_parent_is_replaced(sandbox: Sandbox) -> None:
    assert count(sandbox) == 3
    assert sandbox._server._process is not None
    os.kill(sandbox._server._process.pid, signal.SIGKILL)
    sandbox._server._process.wait()
    assert count(sandbox) == 3
    sandbox.close()
    assert count(sandbox) == 3, "closing ends the parent; a later statement starts another"
