"""A full disk, a store that cannot be written, damaged parts, two workers on one part: real ones, in real processes.

Nothing lost, nothing doubled, one line that says what happened. A small tmpfs is the full disk where this process may
mount one; a limit on the size of files otherwise.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from curator.corpus.ingest import ingest
from curator.corpus.manifest import corpus_names
from curator.store.store import Store
from tests.mix_stores import task_records
from tests.models import random_conversations
from tests.toy_scoring import (
    chat_file,
    corpus_ids,
    losses,
    scored_chats,
    toy_model_folder,
)

ROOT = Path(__file__).parents[2]
# argv: store, model folder, seconds that each part takes. Prints the report.
SCORE = """
import json, sys, time
from pathlib import Path
from curator.store.store import Store
from tests.toy_scoring import ToyEngine, toy_score
from curator.errors import BallastError
score, pause_s = ToyEngine.score, float(sys.argv[3])
def slow(self, rows, on_rows=None):
    time.sleep(pause_s)
    return score(self, rows, on_rows)
ToyEngine.score = slow
try:
    print(json.dumps(toy_score(Store(sys.argv[1]).open(), Path(sys.argv[2])).document()))
except BallastError as error:
    sys.stderr.write(f"error: {error}\\n")
    sys.exit(2)
"""


def run(*command: str, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Python with these arguments; no file that it writes may become larger than `limit_bytes`."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
    if limit_bytes is not None:
        command = ("-c", limit + command[1], *command[2:])
    environment = {**os.environ, "BALLAST_PROGRESS": "0", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def curator(*arguments: str, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    program = "import sys; from curator.__main__ import main; sys.exit(main(sys.argv[1:]))"
    return run("-c", program, *arguments, limit_bytes=limit_bytes)


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def mount(*arguments: str) -> bool:
    """Whether this process may mount, and did."""
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


class Disk:
    """A folder with little room; `widen` gives it more."""

    def __init__(self, path: Path, mounted: bool, limit_bytes: int) -> None:
        self.path, self._mounted, self._limit_bytes = path, mounted, limit_bytes
        self.reason = "No space left on device" if mounted else "File too large"

    @property
    def limit_bytes(self) -> int | None:
        """The limit that a process needs to find the disk full; None where the disk really is."""
        return None if self._mounted else self._limit_bytes

    def widen(self) -> None:
        if self._mounted:
            assert mount("-o", "remount,size=64m", str(self.path))


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Disk]:
    path.mkdir()
    mounted = mount("-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(path))
    try:
        yield Disk(path, mounted, size_bytes // 4)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """The folder without a right to write: mounted so for root, whom modes do not stop."""
    if os.geteuid() == 0:
        if not (mount("--bind", str(root), str(root)) and mount("-o", "remount,bind,ro", str(root))):
            pytest.skip("root may neither mount here nor be stopped by modes")
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(root)], check=True, timeout=30)
        return
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_model_folder(tmp_path / "base", "base")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    ingest(store, [chat_file(tmp_path / "chats.jsonl", 40)], "chats")
    return store


def big_file(path: Path, n: int) -> Path:
    """Conversations that do not compress."""
    rows = [
        [*messages, {"role": "user", "content": os.urandom(2_000).hex()}, {"role": "assistant", "content": "ok"}]
        for messages in random_conversations(n, seed=8)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def test_ingest_on_a_full_disk_writes_nothing_and_goes_on_with_room(tmp_path: Path) -> None:
    first, big = chat_file(tmp_path / "first.jsonl", 10), big_file(tmp_path / "big.jsonl", 600)
    with small_disk(tmp_path / "disk", 900_000) as disk:
        root = str(disk.path / "store")
        assert curator("ingest", str(first), "--corpus", "c", "--store", root).returncode == 0
        store = Store(root).open()
        before = corpus_ids(store, "c")
        command = ("ingest", str(big), "--corpus", "c", "--store", root)
        full = curator(*command, limit_bytes=disk.limit_bytes)
        assert_one_line(full, "cannot write corpora/c/part-", disk.reason)
        assert corpus_ids(store, "c") == before
        disk.widen()
        assert curator(*command).returncode == 0
        assert len(corpus_ids(store, "c")) == len(before) + 600
        names = {path.name for path in (disk.path / "store/corpora/c").iterdir()}
        assert not [name for name in names if name.startswith(".tmp-")]


def test_scoring_on_a_full_disk_keeps_what_was_written(tmp_path: Path, model: Path) -> None:
    file = chat_file(tmp_path / "chats.jsonl", 300)
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        store = Store(disk.path / "store").open()
        ingest(store, [file], "chats")
        if disk.limit_bytes is None:
            free = os.statvfs(disk.path)
            (disk.path / "others").write_bytes(bytes(free.f_bavail * free.f_frsize - 120_000))
        script = (SCORE, store.base, str(model), "0")
        limit = 4_000 if disk.limit_bytes is not None else None
        full = run("-c", *script, limit_bytes=limit)
        assert_one_line(full, "cannot write ", disk.reason)
        scorers = store.list("scores/chats")
        assert not any(store.exists(f"scores/chats/{scorer}/scorer.json") for scorer in scorers)
        n_before = sum(len(store.list(f"scores/chats/{scorer}", "part-*")) for scorer in scorers)
        disk.widen()
        done = run("-c", *script)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert losses(store, report["scorer_id"]).keys() == corpus_ids(store)
        if disk.limit_bytes is None:
            assert n_before > 0
            assert report["n_rows_now"] < report["n_rows"]


@pytest.mark.slow
def test_a_mix_on_a_full_disk_is_not_there(tmp_path: Path) -> None:
    tasks = tmp_path / "task.jsonl"
    tasks.write_text(
        "".join(json.dumps({"messages": [*row["messages"], {"role": "user", "content": os.urandom(1_500).hex()},
                                         {"role": "assistant", "content": "ok"}]}) + "\n"
                for row in task_records(400))
    )  # fmt: skip
    with small_disk(tmp_path / "disk", 700_000) as disk:
        store = scored_chats(Store(disk.path / "store").open(), tmp_path)
        command = ("mix", str(tasks), "--corpus", "chats", "--rows", "5", "--store", store.base)
        # The command holds the task rows in a temporary file of its own, which a limit on sizes would stop first.
        full = curator(*command, limit_bytes=None if disk.limit_bytes is None else 6 << 20)
        if disk.limit_bytes is None:
            assert_one_line(full, "cannot write mixes/local/.ballast-hidden-", disk.reason)
            assert os.listdir(disk.path / "store/mixes/local") == []  # noqa: PTH208 - hidden names count too
        disk.widen()
        done = curator(*command, "--json")
        assert done.returncode == 0, done.stderr
        assert curator("verify", json.loads(done.stdout)["mix_id"], "--store", store.base).returncode == 0


@pytest.mark.slow
def test_a_read_only_store_can_be_read_and_says_that_it_cannot_be_written(tmp_path: Path, model: Path) -> None:
    store = scored_chats(Store(tmp_path / "store").open(), tmp_path)
    more, tasks = chat_file(tmp_path / "more.jsonl", 5, seed=4), chat_file(tmp_path / "task.jsonl", 20, seed=5)
    before = corpus_ids(store)
    other = toy_model_folder(tmp_path / "other", "other")
    with read_only(Path(store.base)):
        read = curator("sql", "select count(*) n from gap where complete", "--store", store.base, "--json")
        assert read.returncode == 0, read.stderr
        again = run("-c", SCORE, store.base, str(model), "0")  # complete: nothing to write
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["skipped"]
        assert_one_line(curator("ingest", str(more), "--corpus", "chats", "--store", store.base), "cannot write")
        assert_one_line(run("-c", SCORE, store.base, str(other), "0"), "cannot write")
        mix = curator("mix", str(tasks), "--corpus", "chats", "--rows", "3", "--store", store.base)
        assert_one_line(mix, "cannot write mixes/local ")
        exported = curator("export", "--corpus", "chats", "--out", str(tmp_path / "p.tar"), "--store", store.base)
        assert exported.returncode == 0, exported.stderr
    assert corpus_ids(store) == before


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    middle = 60  # in the first page's own bytes, which a footer check does not see
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def _empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("damage", "published"),
    [
        (_flip, False),
        *(pytest.param(how, named, marks=pytest.mark.slow) for how in (_cut, _empty) for named in (True, False)),
        pytest.param(_flip, True, marks=pytest.mark.slow),
    ],
)
def test_damaged_score_parts_are_set_aside_and_scored_again(
    store: Store, model: Path, damage: object, published: bool
) -> None:
    assert callable(damage)
    first = json.loads(run("-c", SCORE, store.base, str(model), "0").stdout)
    folder = f"scores/chats/{first['scorer_id']}"
    wanted = losses(store, first["scorer_id"])
    part = store.list(folder, "part-*.parquet")[1]
    n_rows = store.read_table(f"{folder}/{part}").num_rows
    store.write_bytes(f"{folder}/{part}", damage(store.read_bytes(f"{folder}/{part}")))
    if not published:
        store.delete(f"{folder}/scorer.json")
    done = run("-c", SCORE, store.base, str(model), "0")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["n_rows_now"] == n_rows
    assert any(f"set aside and scored again: {part}" in warning for warning in report["warnings"])
    assert losses(store, first["scorer_id"]) == wanted


@pytest.mark.parametrize(
    "damage", [_flip, pytest.param(_cut, marks=pytest.mark.slow), pytest.param(_empty, marks=pytest.mark.slow)]
)
def test_a_damaged_corpus_part_stops_the_run_and_is_named(store: Store, model: Path, damage: object) -> None:
    assert callable(damage)
    part = Path(store.base) / "corpora/chats/part-00000-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(damage(whole))
    assert_one_line(run("-c", SCORE, store.base, str(model), "0"), "corpora/chats/part-00000-00000.parquet")
    part.write_bytes(whole)
    done = run("-c", SCORE, store.base, str(model), "0")
    assert losses(store, json.loads(done.stdout)["scorer_id"]).keys() == corpus_ids(store)


def test_two_workers_on_the_same_parts_lose_and_double_nothing(store: Store, model: Path) -> None:
    script = [sys.executable, "-c", SCORE, store.base, str(model), "0.05"]
    environment = {**os.environ, "BALLAST_PROGRESS": "0", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(script, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    reports = []
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        reports.append(json.loads(out))
    assert reports[0]["scorer_id"] == reports[1]["scorer_id"]
    assert losses(store, reports[0]["scorer_id"]).keys() == corpus_ids(store)
    n_now = sum(report["n_rows_now"] for report in reports)
    assert len(corpus_ids(store)) <= n_now < 2 * len(corpus_ids(store))  # they shared the work
    assert reports[0]["warnings"] == reports[1]["warnings"] == []


def test_two_ingests_at_once_one_waits_its_turn(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    store = Store(root).open()
    file = chat_file(tmp_path / "chats.jsonl", 10)
    with store.lock("corpora/chats"):
        done = curator("ingest", str(file), "--corpus", "chats", "--store", root)
        assert_one_line(done, "another process is writing corpora/chats: wait for it to end")
    assert corpus_names(store) == []
