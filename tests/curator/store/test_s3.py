"""The whole way of the data on an S3-compatible bucket, and what happens when its requests are lost."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.errors import (
    IntegrityError,
    LockedError,
    MissingError,
    StoreError,
)
from curator.mix.build import build_mix, remove_stale
from curator.mix.verify import verify
from curator.query.database import connect
from curator.query.queries import run_statement
from curator.store.lock import Lease, bucket_lease
from curator.store.schema import SOURCES
from curator.store.store import Store, arrow_schema
from tests.buckets import (
    Losses,
    bucket_server,
    environment,
    losing_proxy,
)
from tests.mix_stores import recipe, task_set
from tests.toy_scoring import (
    chat_file,
    corpus_ids,
    losses,
    scored_chats,
    toy_model_folder,
    toy_score,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with bucket_server() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(found).items():
            patch.setenv(name, value)
        yield found


@pytest.fixture
def store(url: str, tmp_path: Path) -> Store:
    return Store(f"s3://ballast/{tmp_path.name}").open()


def test_a_file_is_read_while_another_process_replaces_it(store: Store) -> None:
    """An open file of a bucket asks for the object that was there when it was opened."""
    store.write_bytes("lines", b"0123456789")
    assert [store.read_bytes("lines", last) for last in (None, 3, 10, 11)] == [
        b"0123456789", b"789", b"0123456789", b"0123456789",
    ]  # fmt: skip
    stop = threading.Event()

    def replace() -> None:
        n = 0
        while not stop.is_set():
            store.write_bytes("lines", b"x" * (10 + (n := n + 1)))

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        found = [len(store.read_bytes("lines", last)) for last in (None, 10) for _ in range(50)]
    finally:
        stop.set()
        writer.join()
    assert min(found) >= 10
    assert found[:50] == sorted(found[:50])


def test_the_whole_way_of_the_data(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLAST_STORE", f"s3://{store.base}")
    assert main(["ingest", str(chat_file(tmp_path / "chats.jsonl", 30)), "--corpus", "chats"]) == 0
    report = toy_score(store, toy_model_folder(tmp_path / "base", "base"))
    toy_score(store, toy_model_folder(tmp_path / "bad", "bad"), 1.5, "bad")
    assert losses(store, report.scorer_id).keys() == corpus_ids(store)
    assert toy_score(store, tmp_path / "base").skipped

    capsys.readouterr()
    assert main(["sql", "select count(*) n, min(gap_abs) > 0 as positive from gap where complete", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row == {"n": report.status_counts["scored"], "positive": True}

    tasks = chat_file(tmp_path / "task.jsonl", 40, seed=9)
    assert main(["mix", str(tasks), "--corpus", "chats", "--rows", "5", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["created"]
    assert main(["verify", made["mix_id"]]) == 0
    assert main(["mix", str(tasks), "--corpus", "chats", "--rows", "5", "--json"]) == 0
    capsys.readouterr()
    # A local store of the same content makes the same mix.
    local = scored_chats(Store(tmp_path / "local").open(), tmp_path)
    assert main(["mix", str(tasks), "--corpus", "chats", "--rows", "5", "--json", "--store", local.base]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["mix_id"], again["manifest"]["rows_sha256"]) == (made["mix_id"], made["manifest"]["rows_sha256"])
    assert store.list("mixes/local") == [made["mix_id"]]


def test_a_large_file_is_uploaded_in_pieces_and_memory_stays_flat(url: str, tmp_path: Path) -> None:
    script = (
        "import resource, sys; from curator.store.store import Store\n"
        "store, n = Store(sys.argv[1]).open(), 12\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "with store.fill('t/small') as path: path.write_bytes(bytes(40 << 20))\n"  # all pieces under way at once
        "before = peak()\n"
        "with store.fill('t/large') as path:\n"
        "    with path.open('wb') as file:\n"
        "        for _ in range(160): file.write(bytes(1 << 20))\n"
        "print(peak() - before, store.filesystem.info(store.url('t/large'))['size'])"
    )
    losses = Losses(method="PUT", part="t/large")
    with losing_proxy(url, losses) as proxy:
        done = subprocess.run(
            [sys.executable, "-c", script, f"s3://ballast/{tmp_path.name}"],
            env=environment(proxy), cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
    growth_mib, size = map(int, done.stdout.split())
    assert size == 160 << 20
    assert growth_mib < 80
    assert losses.seen == 20  # pieces of 8 MiB


@pytest.mark.slow
def test_what_a_killed_build_left_in_the_bucket_is_written_over_and_swept(store: Store, tmp_path: Path) -> None:
    scored_chats(store, tmp_path, n=12)
    tasks = task_set(tmp_path, 20)
    made = build_mix(store, tasks, recipe(rows=3))
    store.delete(f"mixes/local/{made.mix_id}/manifest.json")  # a copy that was cut off before its manifest
    store.write_bytes("mixes/local/.tmp-dead/mix.parquet", b"1")
    again = build_mix(store, tasks, recipe(rows=3))
    assert again.created
    assert again.manifest.rows_sha256 == made.manifest.rows_sha256
    verify(store, "local", made.mix_id)
    assert remove_stale(store, "local") == []  # somebody may be writing it
    assert remove_stale(store, "local", older_than_s=-60) == [".tmp-dead"]
    assert not store.exists("mixes/local/.tmp-dead")


def test_duckdb_reads_a_part_only_as_the_manifest_names_it(store: Store, tmp_path: Path) -> None:
    scored_chats(store, tmp_path, n=12)
    store.write_bytes("corpora/chats/part-99999-00000.parquet", b"no Parquet at all")
    with connect(store, ["chats"]) as connection:
        table = run_statement(connection, "select count(*) n from examples").table
    assert table["n"].to_pylist() == [len(corpus_ids(store))]


def test_a_damaged_object_is_an_integrity_error_and_a_missing_one_is_missing(store: Store) -> None:
    empty = arrow_schema(SOURCES).empty_table()
    store.write_table("a.parquet", empty, SOURCES)
    store.write_bytes("b.parquet", store.read_bytes("a.parquet")[:-9])
    with pytest.raises(IntegrityError, match=r"b\.parquet .* not whole Parquet"):
        store.read_table("b.parquet")
    with pytest.raises(MissingError, match=r"c\.parquet is not in store"):
        store.read_table("c.parquet")


def test_a_bucket_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(StoreError, match=r"cannot write store\.json in store nobucket/x: The specified bucket"):
        Store("s3://nobucket/x").open()


def test_the_age_of_a_file_and_of_a_folder(store: Store) -> None:
    store.write_bytes("folder/file", b"")
    time.sleep(1.1)  # buckets tell whole seconds
    assert 0 < store.age_s("folder/file") < 600
    assert 0 < store.age_s("folder") < 600
    assert store.age_s("nowhere") == 0


def test_one_writer_at_a_time_through_a_lease(store: Store) -> None:
    other = Store(f"s3://{store.base}")
    with (
        store.lock("corpora/c"),
        pytest.raises(LockedError, match=r"another process .* is writing corpora/c: .* lease runs out in 1\d\d s"),
        other.lock("corpora/c"),
    ):
        pass
    with other.lock("corpora/c"):
        assert other.list("corpora/c") == []
    assert store.sweep("corpora/c", set()) == []


def test_a_dead_holders_lease_runs_out_and_a_living_ones_does_not(store: Store) -> None:
    key = f"{store.base}/.lock"
    dead = {"token": "0", "holder": "gone", "until": time.time() - 1}
    store.write_json(".lock", dead)
    with bucket_lease(store.filesystem, key, ".", store.base, lease_s=1.0):
        time.sleep(1.5)  # longer than a lease: renewed meanwhile
        with (
            pytest.raises(StoreError, match="another process"),
            bucket_lease(store.filesystem, key, ".", store.base, lease_s=1.0),
        ):
            pass
    assert not store.exists(".lock")


def _run_out(store: Store) -> str:
    store.write_json(".lock", {"token": "0", "holder": "gone", "until": time.time() - 1})
    return f"{store.base}/.lock"


def test_of_two_that_read_the_same_lease_run_out_one_gets_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = _run_out(store)
    first, second = (Lease(store.filesystem, key, ".", store.base) for _ in range(2))
    read = second._held

    def read_and_be_overtaken() -> dict[str, object] | None:
        held = read()
        monkeypatch.setattr(second, "_held", read)
        first.take()
        return held

    monkeypatch.setattr(second, "_held", read_and_be_overtaken)
    with pytest.raises(StoreError, match="another process took over"):
        second.take()
    first.renew()
    assert store.read_json(".lock")["token"] == first.token


def test_a_holder_that_was_overtaken_learns_of_it_and_leaves_the_others_lease_alone(store: Store) -> None:
    late = Lease(store.filesystem, f"{store.base}/.lock", ".", store.base, lease_s=-1.0)  # run out when it is taken
    late.take()
    late.renew()  # nobody came: it is still ours
    other = Lease(store.filesystem, late.key, ".", store.base)
    other.take()
    for _ in range(2):
        with pytest.raises(StoreError, match="ran out and another process took it over"):
            late.renew()
    late.free()
    assert store.read_json(".lock")["token"] == other.token
    other.free()
    assert not store.exists(".lock")


def test_a_renewal_whose_answer_was_lost_keeps_the_lease(store: Store) -> None:
    lease = Lease(store.filesystem, f"{store.base}/.lock", ".", store.base)
    lease.take()
    lease._etag = '"of an earlier renewal"'
    lease.renew()
    assert not lease.lost


@pytest.mark.parametrize("at", ["part-", "sources-"])
def test_an_ingest_that_lost_its_lease_lists_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Another process takes over while the parts, or the last of them, are written."""
    taken: list[str] = []
    write_table = Store.write_table

    def take_over(path: str) -> None:
        if not taken and Path(path).name.startswith(at):
            taken.append(path)
            store.write_json("corpora/c/.lock", {"token": "1", "holder": "other", "until": time.time() + 99})

    def write(self: Store, path: str, *rest: object) -> str:
        sha256: str = write_table(self, path, *rest)  # type: ignore[arg-type]
        take_over(path)
        return sha256

    monkeypatch.setattr(Store, "write_table", write)
    with pytest.raises(StoreError, match="another process took it over: nothing was listed"):
        ingest(store, [chat_file(tmp_path / "chats.jsonl", 5)], "c")
    assert taken
    assert not store.exists("corpora/c/corpus.json")
    assert store.read_json("corpora/c/.lock")["token"] == "1"
    assert store.exists(taken[0])  # its name may be the other's by now


def test_of_many_that_want_a_lease_one_gets_it(store: Store) -> None:
    got: list[int] = []
    barrier = threading.Barrier(4)

    def want(number: int) -> None:
        barrier.wait()
        try:
            with Store(f"s3://{store.base}").lock("c"):
                got.append(number)
                done.wait(10)
        except StoreError:
            refused.release()

    done, refused = threading.Event(), threading.Semaphore(0)
    threads = [threading.Thread(target=want, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert refused.acquire(timeout=20)
    done.set()
    for thread in threads:
        thread.join()
    assert len(got) == 1


_WORK = """
import sys
from pathlib import Path
from curator.mix.build import build_mix
from curator.store.store import Store
from tests.mix_stores import recipe, task_set
from tests.toy_scoring import scored_chats
store = scored_chats(Store(sys.argv[1]).open(), Path(sys.argv[2]))
print(build_mix(store, task_set(Path(sys.argv[2]), 40), recipe(rows=5)).mix_id)
"""


def _run(root: str, workdir: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WORK, root, str(workdir)],
        env=environment(endpoint), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["after", pytest.param("before", marks=pytest.mark.slow), pytest.param("503", marks=pytest.mark.slow)]
)
def test_lost_requests_are_repeated_and_nothing_is_lost_or_doubled(url: str, tmp_path: Path, how: str) -> None:
    """Every fifth write loses its request or its answer: the store comes out as without."""
    root = f"s3://ballast/{tmp_path.name}"
    lost = Losses(method="PUT", which=frozenset(range(2, 200, 4)), how=how)
    with losing_proxy(url, lost) as proxy:
        done = _run(root, tmp_path, proxy)
    assert done.returncode == 0, done.stderr
    assert lost.lost > 3
    store = Store(root).open(create=False)
    verify(store, "local", done.stdout.strip())
    local = scored_chats(Store(tmp_path / "local").open(), tmp_path)
    for scorer in local.list("scores/chats"):
        assert losses(store, scorer) == losses(local, scorer)
        assert store.list(f"scores/chats/{scorer}") == local.list(f"scores/chats/{scorer}")


@pytest.mark.slow
def test_a_service_that_stays_away_ends_in_one_line(url: str, tmp_path: Path) -> None:
    chats = chat_file(tmp_path / "chats.jsonl", 5)
    lost = Losses(method="PUT", part="part-", how="503", every=True)
    command = [sys.executable, "-m", "curator", "ingest", str(chats), "--corpus", "chats"]
    with losing_proxy(url, lost) as proxy:
        done = subprocess.run(
            [*command, "--store", f"s3://ballast/{tmp_path.name}"],
            env=environment(proxy), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write corpora/chats/part-00000-00000.parquet in store ballast/")
    assert len(done.stderr.splitlines()) == 1
    store = Store(f"s3://ballast/{tmp_path.name}")
    assert store.list("corpora/chats") == []
    assert not store.exists("corpora/chats/.lock")
