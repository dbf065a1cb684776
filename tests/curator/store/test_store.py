import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from curator.cli import COMMANDS
from curator.console import Progress, progress_line
from curator.errors import (
    BadInputError,
    IntegrityError,
    MissingError,
    StoreError,
)
from curator.store.schema import SCORES, SOURCES, TABLES
from curator.store.store import Store, arrow_schema, conform


def _sources(source_id: str | None = None) -> pa.Table:
    own = pa.array([source_id], pa.string())
    return pa.table({"example_id": ["a"], "source": ["s"], "source_id": own, "record": [1], "file": ["f"]})


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    root = tmp_path / "store" if request.param == "local" else f"memory://{tmp_path.name}/store"
    return Store(root).open()


def test_a_new_store_says_its_format_version(store: Store) -> None:
    assert store.read_json("store.json") == {"format_version": 1}


@pytest.mark.parametrize("version", [-1, 0, 2, None, "1", True])
def test_another_format_version_is_refused(store: Store, version: object) -> None:
    store.write_json("store.json", {"format_version": version})
    with pytest.raises(StoreError, match="format version"):
        store.open()


def test_opening_without_creating_names_the_missing_store(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no store at"):
        Store(tmp_path / "nowhere").open(create=False)
    assert not (tmp_path / "nowhere").exists()


def test_tables_come_back_as_written(store: Store) -> None:
    digest = store.write_table("a/part-1.parquet", _sources(), SOURCES)
    back = store.read_table("a/part-1.parquet")
    assert back.schema == arrow_schema(SOURCES)
    assert back.to_pylist() == _sources().to_pylist()
    assert store.sha256("a/part-1.parquet") == digest
    assert store.read_table("a/part-1.parquet", ["record"]).column_names == ["record"]


def test_every_declared_table_can_be_written(store: Store) -> None:
    for table in TABLES:
        store.write_table(f"{table.name}.parquet", arrow_schema(table).empty_table(), table)
        assert store.read_table(f"{table.name}.parquet").schema == arrow_schema(table)


def test_other_columns_types_and_nulls_are_refused() -> None:
    with pytest.raises(StoreError, match="columns"):
        conform(_sources().drop_columns("record"), SOURCES)
    with pytest.raises(StoreError, match="record is string, declared int64"):
        conform(_sources().set_column(3, "record", pa.array(["1"])), SOURCES)
    nulls = pa.Table.from_pylist([{"example_id": None, "status": "scored"}], schema=arrow_schema(SCORES))
    with pytest.raises(StoreError, match="example_id has 1 nulls"):
        conform(nulls, SCORES)


def test_missing_and_damaged_files_have_their_own_errors(store: Store) -> None:
    with pytest.raises(MissingError, match=r"a\.json is not in store"):
        store.read_json("a.json")
    with pytest.raises(MissingError, match=r"a\.parquet is not in store"):
        store.read_table("a.parquet")
    store.write_bytes("a.json", b"[1]")
    with pytest.raises(IntegrityError, match="not a JSON object"):
        store.read_json("a.json")
    store.write_bytes("a.json", b'{"cut')
    with pytest.raises(IntegrityError, match="is not JSON"):
        store.read_json("a.json")
    store.write_bytes("a.parquet", b"PAR1 no PAR1")
    with pytest.raises(IntegrityError, match="not whole Parquet"):
        store.read_table("a.parquet")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\\b", "a\0b"])
def test_paths_stay_inside_the_store(store: Store, path: str) -> None:
    with pytest.raises(BadInputError, match="not a path inside"):
        store.write_bytes(path, b"")


def test_deleting_the_root_is_refused(store: Store) -> None:
    with pytest.raises(BadInputError, match="whole store"):
        store.delete("")
    store.delete("never/was/there")


def test_lists_are_sorted_and_hide_the_stores_own_files(store: Store) -> None:
    for name in ("b.parquet", "a.parquet", "x.json", ".tmp-left"):
        store.write_bytes(f"c/{name}", b"1")
    assert store.list("c") == ["a.parquet", "b.parquet", "x.json"]
    assert store.list("c", "*.parquet") == ["a.parquet", "b.parquet"]
    assert store.list("nowhere") == []


def test_sweep_removes_what_no_manifest_names(store: Store) -> None:
    for name in ("keep", "left", ".tmp-left"):
        store.write_bytes(f"c/{name}", b"1")
    assert store.sweep("c", {"keep"}) == [".tmp-left", "left"]
    assert store.list("c") == ["keep"]
    assert store.sweep("nowhere", set()) == []


def test_the_second_of_two_equal_folders_is_dropped(store: Store) -> None:
    for name, text in (("one", b"1"), ("two", b"2")):
        store.write_bytes(f"t/{name}/m.json", text)
    assert store.rename_dir("t/one", "mixes/m")
    assert not store.rename_dir("t/two", "mixes/m")
    assert store.read_bytes("mixes/m/m.json") == b"1"
    assert store.list("t") == []


def test_a_folder_gets_its_name_once_all_of_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, flushed, named = Store(tmp_path).open(), set[int](), list[set[int]]()
    with store.fill("t/one/rows", durable=False) as path:
        path.write_bytes(b"1")
    store.fill_json("t/one/m.json", {"a": 1}, durable=False)
    flush, rename = os.fsync, Path.replace

    def note(descriptor: int) -> None:
        flush(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def note_name(self: Path, target: Path) -> Path:
        named.append(set(flushed))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", note_name)
    assert store.rename_dir("t/one", "mixes/m")
    final = tmp_path / "mixes" / "m"
    assert named == [{path.stat().st_ino for path in (final, final / "rows", final / "m.json")}]
    assert final.parent.stat().st_ino in flushed


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_table("t.parquet", _sources("old"), SOURCES)
    with pytest.raises(StoreError, match="columns"):
        store.write_table("t.parquet", pa.table({"x": [1]}), SOURCES)
    assert store.read_table("t.parquet")["source_id"].to_pylist() == ["old"]
    assert os.listdir(tmp_path) == ["t.parquet"]  # noqa: PTH208 - hidden files count too


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot write store\.json"):
        Store(tmp_path / "file").open()
    with pytest.raises(StoreError, match="cannot write c in store"), Store(tmp_path / "file").lock("c"):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        Store(tmp_path).lock("corpora/c"),
        pytest.raises(StoreError, match="another process is writing"),
        Store(tmp_path).lock("corpora/c"),
    ):
        pass
    with Store(tmp_path).lock("corpora/c"):
        assert Store(tmp_path).list("corpora/c") == []


def test_a_url_that_nothing_serves_is_a_store_error() -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        Store("nosuchscheme://bucket/x")


def test_the_progress_line_has_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, unknown = Progress(100, "rows", "scoring"), Progress(None, "B", "reading")
    monkeypatch.setattr(Progress, "rate", lambda self: 5.0 if self is bar else 1_500_000.0)
    bar.done, unknown.done = 25, 3_000_000
    assert progress_line(bar) == "scoring: 25 rows of 100 rows, 5 rows/s, 15 s left"
    assert progress_line(unknown) == "reading: 3.0 MB, 1.5 MB/s"


def _curator(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "curator", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_top_help_lists_every_command_and_imports_nothing_heavy() -> None:
    done = _curator("--help")
    assert done.returncode == 0
    assert all(f"  {name}" in done.stdout for name in COMMANDS)
    probe = (
        "import sys, contextlib; from curator.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "sys.exit(len({'pyarrow', 'duckdb', 'torch', 'fsspec', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


def test_an_unknown_command_exits_2() -> None:
    done = _curator("bogus")
    assert done.returncode == 2
    assert "invalid choice: 'bogus'" in done.stderr
