"""SQL over a store that is not a local folder: a copy of corpora and scores, fresh, verified, and of nothing else."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx
import pytest

from api.settings import Settings
from curator.errors import IntegrityError
from curator.query import local_copy as localcopy
from curator.query.local_copy import LocalCopy
from curator.store.store import Store
from tests.api.serving import running
from tests.gap_stores import write_corpus, write_scorer


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    name = f"memory://{request.node.name}"
    found = Store(name).open()
    ids = write_corpus(found, "chats", [f"kind answer {number}" for number in range(60)])
    write_scorer(found, "chats", "base", "aligned", dict.fromkeys(ids, (10.0, 10)))
    write_scorer(found, "chats", "bad", "misaligned", dict.fromkeys(ids, (12.0, 10)), domain="finance")
    for name in ("jobs/anna/input.parquet", "mixes/anna/mix.parquet"):
        found.write_bytes(name, b"private")
    yield found
    fsspec.filesystem("memory").rm(f"/{request.node.name}", recursive=True)


def test_statements_read_the_copy_and_it_follows_the_bucket(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localcopy, "LOOK_EVERY_S", 0.0)
    settings = Settings(store=store.url(""), temp_dir=str(tmp_path), sql_timeout_s=60)
    with running(settings) as url, httpx.Client(base_url=url, timeout=120) as http:

        def count() -> int:
            answer = http.post("/v1/sql", json={"statement": "select count(*) as n from gap where complete"})
            assert answer.status_code == 200, answer.text
            return int(answer.json()["rows"][0]["n"])

        assert count() == 60
        (copy,) = tmp_path.glob("ballast-sql-*")
        assert sorted(item.name for item in copy.iterdir()) == ["corpora", "scores", "store.json"]
        more = write_corpus(store, "more", ["another"])
        for role, domain in (("aligned", None), ("misaligned", "finance")):
            write_scorer(store, "more", role, role, dict.fromkeys(more, (3.0, 3)), domain=domain)
        assert count() == 61
        store.delete("corpora/chats")
        assert count() == 1
        assert not (copy / "corpora" / "chats").exists()
    assert list(tmp_path.iterdir()) == [], "the copy goes with the process"


def test_a_part_that_is_not_what_its_manifest_says_is_not_taken(store: Store, tmp_path: Path) -> None:
    store.write_bytes("corpora/chats/part-0.parquet", b"PAR1 and no more")
    copy = LocalCopy(store, str(tmp_path))
    with pytest.raises(IntegrityError, match=r"part-0.parquet has SHA-256"):
        copy.path()
    copy.close()
    assert list(tmp_path.iterdir()) == []


def test_parts_that_are_there_are_not_fetched_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localcopy, "LOOK_EVERY_S", 0.0)
    copy = LocalCopy(store, str(tmp_path))
    root = copy.path()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    assert len(before) == 4
    assert {path: path.stat().st_mtime_ns for path in copy.path().rglob("*.parquet")} == before
    copy.close()
