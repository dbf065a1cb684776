"""The usage log: no acknowledged event is lost to a kill, several processes write at once, and reads are ordered."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from curator.query.database import connect
from curator.query.usage import add_usage_view
from curator.store import usage
from curator.store.store import Store
from curator.store.usage import UsageLog, totals

BEFORE, AFTER = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
# Writes events and says so on stdout until it is killed.
_WRITER = """
import sys
from curator.store.store import Store
from curator.store.usage import UsageLog
log = UsageLog(Store(sys.argv[1]))
for number in range(1_000_000):
    log.add(sys.argv[2], "POST /v1/mixes", status=201, n_rows_in=number)
    print(number, flush=True)
"""


def actions(store: Store, **bounds: datetime | str) -> list[str]:
    given = {"since": BEFORE, "until": AFTER, **bounds}
    return [event["action"] for event in UsageLog(store).read(**given)]  # type: ignore[arg-type]


def test_events_come_back_in_order_of_time_with_what_was_said(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    one, two = UsageLog(store), UsageLog(store)
    one.add("anna", "first", key_id="k", status=201, n_rows_in=3, mix_id=None)
    two.add("bert", "second")
    one.add("anna", "third")
    one.close()
    two.close()
    found = list(UsageLog(store).read(BEFORE, AFTER))
    assert [event["action"] for event in found] == ["first", "second", "third"]
    assert (found[0]["tenant"], found[0]["key_id"], found[0]["n_rows_in"], found[0]["mix_id"]) == ("anna", "k", 3, None)
    assert actions(store, after=found[0]["event_id"]) == ["second", "third"]
    moment = datetime.fromisoformat(found[1]["ended_at"])
    assert "first" in actions(store, until=moment + timedelta(microseconds=1))
    assert actions(store, since=moment + timedelta(seconds=5)) == []
    sums = [(row["tenant"], row["action"], row["n_events"], row["n_rows_in"]) for row in totals(iter(found))]
    assert sums == [("anna", "first", 1, 3), ("anna", "third", 1, 0), ("bert", "second", 1, 0)]


def test_what_a_process_wrote_outlives_its_kill_and_half_a_line_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in ("anna", "bert")
    ]
    said: list[int] = []
    for writer in writers:
        assert writer.stdout is not None
        said.append([int(writer.stdout.readline()) for _ in range(500)][-1])
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        whole = [line for line in rest.split("\n")[:-1] if line]
        said[writers.index(writer)] = int(whole[-1]) if whole else said[writers.index(writer)]
    found = list(UsageLog(store).read(BEFORE, AFTER))
    for name, last in zip(("anna", "bert"), said, strict=True):
        rows = [event["n_rows_in"] for event in found if event["tenant"] == name]
        assert rows == list(range(len(rows)))
        assert len(rows) > last, "what was acknowledged is there"
    assert [event["event_id"] for event in found] == sorted(event["event_id"] for event in found)

    (torn,) = [path for path in tmp_path.rglob("*.jsonl") if b"anna" in path.read_bytes()[:200]]
    with torn.open("ab") as file:
        file.write(b'{"at":"2026-11-')
    assert len(list(UsageLog(store).read(BEFORE, AFTER))) == len(found)
    with connect(store) as connection:
        add_usage_view(connection, store)
        assert connection.execute("select count(*), max(n_rows_in) from usage").fetchall() == [
            (len(found), max(event["n_rows_in"] for event in found))
        ]


def test_days_go_when_they_are_over_their_time(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    log = UsageLog(store)
    log.add("anna", "now")
    log.close()
    today = datetime.now(UTC).date()
    for days in (1, 5):
        store.write_bytes(f"usage/{today - timedelta(days=days)}/old.jsonl", b"")
    store.write_bytes("usage/notes/mine.jsonl", b"")
    assert log.sweep(None) == 0
    assert log.sweep(3 * 86_400) == 1
    assert store.list("usage") == [str(today - timedelta(days=1)), str(today), "notes"]
    assert actions(store) == ["now"]


def test_a_disk_that_takes_half_a_line_costs_that_event_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path).open()
    log = UsageLog(store)
    log.add("anna", "before")
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(usage.os, "write", lambda file, data: real(file, data[:20]))
        with pytest.raises(usage.StoreError, match="no space left"):
            log.add("anna", "torn")
    log.add("anna", "after")
    log.close()
    assert actions(store) == ["before", "after"]


def test_a_bucket_gets_events_a_little_later_as_files_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "BUCKET_DELAY_S", 60.0)  # so that closing writes them
    store = Store("memory://usage-log").open()
    try:
        log = UsageLog(store)
        log.add("anna", "first")
        log.add("anna", "second")
        assert actions(store) == []
        log.close()
        log.add("anna", "third")
        log.close()
        assert actions(store) == ["first", "second", "third"]
        assert len(usage.usage_files(store)) == 2
        with connect(store) as connection:
            add_usage_view(connection, store)
            assert connection.execute("select action from usage order by event_id").fetchall() == [
                ("first",), ("second",), ("third",),
            ]  # fmt: skip
    finally:
        fsspec.filesystem("memory").rm("/usage-log", recursive=True)
