"""`atomic_write`: the new file or nothing, an earlier file kept after a failure, and flushed only when asked."""

import os
from pathlib import Path

import pytest

from curator.errors import BadInputError, StoreError
from curator.store.filesystem import atomic_write


def fail_in_the_middle(path: Path, error: Exception, *, folder: bool = False, shown: str | None = None) -> None:
    with atomic_write(path, durable=True, shown=shown) as temporary:
        if folder:
            temporary.mkdir()
        (temporary / "part" if folder else temporary).write_text("new")
        raise error


@pytest.mark.parametrize("durable", [True, False])
def test_the_file_takes_its_place_at_the_end(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "a.json"
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [item.name for item in path.parent.iterdir()] == ["a.json"]


def test_a_failure_keeps_the_earlier_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(BadInputError, match="bad"):
        fail_in_the_middle(path, BadInputError("bad"))
    with pytest.raises(StoreError, match=f"cannot write {path}: No space left on device"):
        fail_in_the_middle(path, OSError(28, "No space left on device"))
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_may_be_written_too(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "adapter", durable=True) as work:
        (work / "deep").mkdir(parents=True)
        (work / "deep" / "file").write_text("x")
    assert (tmp_path / "adapter" / "deep" / "file").read_text() == "x"


def test_an_unfinished_folder_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        fail_in_the_middle(tmp_path / "other" / "adapter", RuntimeError("stop"), folder=True)
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize(("durable", "n_flushed"), [(True, 4), (False, 0)])
def test_only_a_durable_write_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, n_flushed: int
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    with atomic_write(tmp_path / "folder", durable=durable) as work:
        work.mkdir()
        (work / "a").write_text("1")
        (work / "b").write_text("2")
    assert len(flushed) == n_flushed, "two files, their folder, and the folder above"


def test_a_message_may_name_the_file_otherwise(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write a\.json in store s: File exists"):
        fail_in_the_middle(tmp_path / "file" / "a.json", AssertionError("not reached"), shown="a.json in store s")
