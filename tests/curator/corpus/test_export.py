"""Score pools as file sets: exported from one store, imported into another, damaged, killed, repeated."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from curator.__main__ import main
from curator.corpus.archive import POOL_FILE
from curator.corpus.export import export_pool, import_pool
from curator.corpus.ingest import ingest
from curator.corpus.manifest import corpus_names, read_corpus, read_scorers
from curator.errors import (
    BadInputError,
    IntegrityError,
    MissingError,
    StoreError,
)
from curator.mix.build import build_mix
from curator.store.store import Store
from tests.mix_stores import recipe, task_set
from tests.toy_scoring import (
    chat_file,
    corpus_ids,
    losses,
    scored_chats,
    toy_score,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def scored(workdir: Path) -> Store:
    return scored_chats(Store(workdir / "store").open(), workdir)


@pytest.fixture(scope="module")
def pool(scored: Store, workdir: Path) -> Path:
    export_pool(scored, "chats", workdir / "pool.tar")
    return workdir / "pool.tar"


@pytest.fixture
def own(scored: Store, tmp_path: Path) -> Store:
    """A copy of the scored store that a test may change."""
    shutil.copytree(scored.base, tmp_path / "own")
    return Store(tmp_path / "own").open()


def snapshot(store: Store) -> dict[str, bytes]:
    root = Path(store.base)
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("name", ["pool.tar", "pool"])
def test_a_pool_comes_back_whole_and_mixes_the_same(scored: Store, tmp_path: Path, name: str) -> None:
    exported = export_pool(scored, "chats", tmp_path / name)
    other = Store(tmp_path / "other").open()
    imported = import_pool(other, tmp_path / name, expect=exported.pool_id)
    assert (imported.pool_id, imported.scorers) == (exported.pool_id, exported.scorers)
    assert imported.n_written == exported.n_files
    assert corpus_ids(other) == corpus_ids(scored)
    for scorer in read_scorers(scored, read_corpus(scored, "chats")):
        assert losses(other, scorer.scorer_id) == losses(scored, scorer.scorer_id)
    tasks = task_set(tmp_path, 40)
    one, two = (build_mix(store, tasks, recipe(rows=5)) for store in (scored, other))
    assert (one.mix_id, one.manifest.rows_sha256) == (two.mix_id, two.manifest.rows_sha256)
    assert two.manifest.tokens.task is not None  # the renderer came along


def test_the_same_pool_gives_the_same_bytes(scored: Store, pool: Path, tmp_path: Path) -> None:
    export_pool(scored, "chats", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == pool.read_bytes()


def test_a_second_import_writes_nothing(pool: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    import_pool(store, pool)
    before = snapshot(store)
    assert import_pool(store, pool).n_written == 0
    assert snapshot(store) == before


def test_a_grown_pool_brings_what_is_new_and_an_old_one_takes_nothing_away(
    own: Store, pool: Path, workdir: Path, tmp_path: Path
) -> None:
    ingest(own, [chat_file(tmp_path / "more.jsonl", 10, seed=5)], "chats")
    toy_score(own, workdir / "base")
    toy_score(own, workdir / "bad", 1.5, "bad")
    export_pool(own, "chats", tmp_path / "grown.tar")
    other = Store(tmp_path / "other").open()
    import_pool(other, pool)
    assert import_pool(other, tmp_path / "grown.tar").n_written > 0
    assert corpus_ids(other) == corpus_ids(own)
    found = read_scorers(other, read_corpus(other, "chats"))
    assert [scorer.complete for scorer in found] == [True, True]
    before = snapshot(other)
    assert import_pool(other, pool).n_written == 0
    assert snapshot(other) == before


def test_a_name_that_stands_for_something_else_is_refused(pool: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other").open()
    ingest(other, [chat_file(tmp_path / "others.jsonl", 8, seed=77)], "chats")
    before = snapshot(other)
    with pytest.raises(BadInputError, match=r"the store's corpus chats .* is not the pool's"):
        import_pool(other, pool)
    assert snapshot(other) == before


def test_another_role_of_the_same_scorer_is_refused(own: Store, pool: Path) -> None:
    (aligned, _) = read_scorers(own, read_corpus(own, "chats"))
    path = f"scores/chats/{aligned.scorer_id}/scorer.json"
    own.write_json(path, {**own.read_json(path), "role": "benign", "domain": "d"})
    with pytest.raises(BadInputError, match=r"scorer base .* has role 'benign' in the store and 'aligned' in the pool"):
        import_pool(own, pool)


def _damage_part(folder: Path) -> None:
    part = next(folder.glob("scores/chats/*/part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")


def _drop_part(folder: Path) -> None:
    next(folder.glob("corpora/chats/part-*.parquet")).unlink()


def _drop_list(folder: Path) -> None:
    (folder / POOL_FILE).unlink()


def _relist(folder: Path) -> None:
    document = json.loads((folder / POOL_FILE).read_text())
    document["files"] = document["files"][1:]
    (folder / POOL_FILE).write_text(json.dumps(document))


def _newer(folder: Path) -> None:
    document = json.loads((folder / POOL_FILE).read_text())
    (folder / POOL_FILE).write_text(json.dumps({**document, "format_version": 99}))


@pytest.mark.parametrize(
    ("damage", "kind", "match"),
    [
        (_damage_part, IntegrityError, "is damaged: its SHA-256"),
        (_drop_part, IntegrityError, "lacks corpora/chats/part-"),
        (_drop_list, BadInputError, "not an exported pool, or was cut off"),
        (_relist, IntegrityError, "pool_id does not follow"),
        (_newer, StoreError, "pool format version 99"),
    ],
)
def test_a_damaged_pool_is_refused_before_anything_is_written(
    scored: Store, tmp_path: Path, damage: object, kind: type[Exception], match: str
) -> None:
    export_pool(scored, "chats", tmp_path / "pool")
    assert callable(damage)
    damage(tmp_path / "pool")
    other = Store(tmp_path / "other").open()
    with pytest.raises(kind, match=match):
        import_pool(other, tmp_path / "pool")
    assert snapshot(other).keys() == {"store.json"}


def test_a_tar_cut_off_anywhere_is_refused(pool: Path, tmp_path: Path) -> None:
    data = pool.read_bytes()
    other = Store(tmp_path / "other").open()
    for n_bytes in (0, 700, len(data) // 2, len(data) - 12_000):
        (tmp_path / "cut.tar").write_bytes(data[:n_bytes])
        with pytest.raises((BadInputError, IntegrityError), match=r"cut\.tar"):
            import_pool(other, tmp_path / "cut.tar")
    assert snapshot(other).keys() == {"store.json"}


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "mixes/local/x/mix.parquet", "corpora/chats/.lock", "a\\b/c"])
def test_a_pool_cannot_write_outside_its_places(scored: Store, tmp_path: Path, path: str) -> None:
    from curator.corpus.archive import new_pool

    with new_pool(tmp_path / "evil.tar") as writer:
        writer.add(path, b"evil")
        writer.close({"corpus": "chats", "revision": "r", "n_examples": 0, "scorers": []})
    other = Store(tmp_path / "other").open()
    with pytest.raises(IntegrityError, match=r"not a path inside a store|does not belong to a pool"):
        import_pool(other, tmp_path / "evil.tar")
    assert snapshot(other).keys() == {"store.json"}


def test_links_in_a_tar_are_not_followed(pool: Path, tmp_path: Path) -> None:
    with tarfile.open(pool) as old, tarfile.open(tmp_path / "links.tar", "w") as new:
        for member in old.getmembers():
            data = old.extractfile(member)
            if member.name.endswith("corpus.json"):
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/hostname", 0
            new.addfile(member, data)
    with pytest.raises(IntegrityError, match=r"lacks corpora/chats/corpus\.json"):
        import_pool(Store(tmp_path / "other").open(), tmp_path / "links.tar")


def test_exports_refuse_what_they_cannot_name_or_overwrite(own: Store, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="exists already"):
        export_pool(own, "chats", pool)
    with pytest.raises(BadInputError, match=r"a folder or a \.tar"):
        export_pool(own, "chats", tmp_path / "pool.zip")
    with pytest.raises(MissingError, match="no scorer 'nobody'; there are: base"):
        export_pool(own, "chats", tmp_path / "p.tar", ["nobody"])
    part = next(Path(own.base).glob("scores/chats/*/part-*.parquet"))
    part.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(IntegrityError, match="is not what its manifest says"):
        export_pool(own, "chats", tmp_path / "p.tar")
    assert os.listdir(tmp_path) == ["own"]  # noqa: PTH208 - hidden files count too


def test_unfinished_scorers_stay_behind_and_named_ones_go_alone(own: Store, tmp_path: Path) -> None:
    (_, bad) = read_scorers(own, read_corpus(own, "chats"))
    path = f"scores/chats/{bad.scorer_id}/scorer.json"
    own.write_json(path, {**own.read_json(path), "complete": False})
    report = export_pool(own, "chats", tmp_path / "p.tar")
    assert (len(report.scorers), report.left_out) == (1, (bad.shown,))
    with pytest.raises(BadInputError, match="is not complete"):
        export_pool(own, "chats", tmp_path / "q.tar", ["bad"])
    assert export_pool(own, "chats", tmp_path / "q.tar", ["base"]).pool_id == report.pool_id


_KILLED = """
import os, signal, sys
from pathlib import Path
from curator.corpus.export import import_pool
from curator.store.store import Store
replace, seen = Path.replace, 0
def dying(self, target):
    global seen
    seen += "store.json" not in str(target)
    if seen == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = dying
import_pool(Store(sys.argv[1]).open(), Path(sys.argv[2]))
"""


def test_a_killed_import_leaves_nothing_visible(pool: Path, tmp_path: Path) -> None:
    with tarfile.open(pool) as tar:
        n_files = len(tar.getmembers()) - 1
    root = tmp_path / "other"
    for n in (1, n_files // 2, n_files):  # the last one is the corpus's manifest
        command = [sys.executable, "-c", _KILLED, str(root), str(pool), str(n)]
        shutil.rmtree(root, ignore_errors=True)
        assert subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode == -signal.SIGKILL
        store = Store(root).open(create=False)
        assert corpus_names(store) == []
        with pytest.raises(MissingError, match="no corpus"):
            read_corpus(store, "chats")
    import_pool(store, pool)
    clean = Store(tmp_path / "clean").open()
    import_pool(clean, pool)
    hidden = {name for name in snapshot(store) if "/.tmp-" in name and not name.startswith("corpora/")}
    assert snapshot(store).keys() - hidden == snapshot(clean).keys()


def test_the_commands_without_torch(scored: Store, workdir: Path, tmp_path: Path) -> None:
    """From a scored store to a mix in another one, on a machine whose Python has no torch."""
    out, other = tmp_path / "pool.tar", str(tmp_path / "other")
    script = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "from curator.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )

    def curator(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    assert main(["export", "--corpus", "chats", "--out", str(out), "--store", scored.base]) == 0
    imported = curator("import", str(out), "--store", other, "--json")
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout)["n_written"] > 0
    tasks = str(chat_file(tmp_path / "task.jsonl", 30, seed=3))
    mixed = curator("mix", tasks, "--corpus", "chats", "--rows", "4", "--store", other, "--json")
    assert mixed.returncode == 0, mixed.stderr
    assert json.loads(mixed.stdout)["manifest"]["tokens"]["task"]["total"] > 0
    refused = curator("import", str(out), "--store", other, "--expect", "0" * 32)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
