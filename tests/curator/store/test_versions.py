"""Stores of another format version: migrated where every step is known, refused and left alone otherwise."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from curator.errors import StoreError
from curator.store import store as migrations
from curator.store.schema import STORE_FORMAT_VERSION
from curator.store.store import STEPS, Store, bring_up_to_date

ROOT = Path(__file__).parents[3]


def older_store(root: Path, version: int) -> Store:
    """As an older version of the product might have left it: its corpora in another folder."""
    store = Store(root).open()
    store.write_json("store.json", {"format_version": version, "made_by": "an older version"})
    store.write_bytes("old-corpora/chats.txt", b"rows")
    return store


def move_corpora(store: Store) -> None:
    for name in store.list("old-corpora"):
        store.write_bytes(f"corpora/{name}", store.read_bytes(f"old-corpora/{name}"))
        store.delete(f"old-corpora/{name}")


def test_every_version_that_there_was_has_a_path_to_this_one() -> None:
    assert set(STEPS) == set(range(1, STORE_FORMAT_VERSION))


def test_a_store_of_this_version_is_opened_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    before = (tmp_path / "store.json").stat().st_mtime_ns
    bring_up_to_date(store, STORE_FORMAT_VERSION, {0: move_corpora})
    assert (tmp_path / "store.json").stat().st_mtime_ns == before


def test_an_older_store_is_migrated_step_by_step(tmp_path: Path) -> None:
    store = older_store(tmp_path, -1)
    seen: list[object] = []

    def first(at: Store) -> None:
        seen.append(at.read_json("store.json")["format_version"])

    def second(at: Store) -> None:
        seen.append(at.read_json("store.json")["format_version"])
        move_corpora(at)

    bring_up_to_date(store, -1, {-1: first, 0: second}, current=1)
    assert seen == [-1, 0]
    assert store.read_json("store.json") == {"format_version": 1, "made_by": "an older version"}
    assert store.read_bytes("corpora/chats.txt") == b"rows"
    bring_up_to_date(store, -1, {-1: first, 0: second}, current=1)  # another process saw the old version too
    assert seen == [-1, 0]


def test_opening_migrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older_store(tmp_path, 0)
    monkeypatch.setattr(migrations.bring_up_to_date, "__defaults__", ({0: move_corpora}, STORE_FORMAT_VERSION))
    assert Store(tmp_path).open(create=False).read_bytes("corpora/chats.txt") == b"rows"


@pytest.mark.parametrize(("version", "steps"), [(2, {}), (0, {}), (-1, {0: move_corpora}), (True, {}), ("1", {})])
def test_what_no_step_leads_on_from_is_refused_and_left_alone(
    tmp_path: Path, version: object, steps: dict[int, migrations.Step]
) -> None:
    store = older_store(tmp_path, 0)
    with pytest.raises(StoreError, match="use the version that wrote it"):
        bring_up_to_date(store, version, steps, current=1)
    assert store.exists("old-corpora/chats.txt")


def test_a_step_that_fails_leaves_the_old_version(tmp_path: Path) -> None:
    def fail(at: Store) -> None:
        raise StoreError("no room")

    store = older_store(tmp_path, 0)
    with pytest.raises(StoreError, match="no room"):
        bring_up_to_date(store, 0, {0: fail}, current=1)
    assert store.read_json("store.json")["format_version"] == 0


def test_two_processes_do_not_migrate_at_once(tmp_path: Path) -> None:
    store = older_store(tmp_path, 0)
    with store.lock("."), pytest.raises(StoreError, match="another process is writing"):
        bring_up_to_date(Store(tmp_path), 0, {0: move_corpora}, current=1)


_KILLED = """
import os, signal, sys
from pathlib import Path
from curator.store.store import bring_up_to_date
from curator.store.store import Store
from tests.curator.store.test_versions import move_corpora
def step(store):
    move_corpora(store)
    os.kill(os.getpid(), signal.SIGKILL)
bring_up_to_date(Store(sys.argv[1]), 0, {0: step}, current=1)
"""


def test_a_killed_migration_starts_its_step_again(tmp_path: Path) -> None:
    store = older_store(tmp_path, 0)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], cwd=ROOT, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert store.read_json("store.json")["format_version"] == 0
    bring_up_to_date(store, 0, {0: move_corpora}, current=1)
    assert store.read_bytes("corpora/chats.txt") == b"rows"
    assert store.read_json("store.json")["format_version"] == 1
