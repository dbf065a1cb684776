"""A pinned revision reads the sources and rejects of the ingests up to it, whatever was ingested since."""

import json
from pathlib import Path
from typing import Any

import pytest

from curator.corpus.export import changed
from curator.corpus.ingest import IngestOptions, ingest
from curator.corpus.manifest import LATEST, read_corpus
from curator.errors import IntegrityError
from curator.query.database import connect
from curator.store.store import Store

MANIFEST = "corpora/c/corpus.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def _add(store: Store, folder: Path, texts: str) -> str:
    """Ingest one conversation for each letter, and a bad record for each blank; returns the revision."""
    records: list[Any] = [{"prompt": "q", "completion": text} if text != " " else {} for text in texts]
    path = folder / f"{texts}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ingest(store, [path], "c", IngestOptions(format="jsonl")).revision


def _counts(store: Store, revision: str) -> tuple[list[int], int]:
    """Copies of each example in descending order, and how many rejects there are."""
    with connect(store, {"c": revision}) as connection:
        copies = connection.execute("select n_copies from examples order by n_copies desc").fetchall()
        (n_rejects,) = connection.execute("select count(*) from rejects").fetchone() or (None,)
    return [n for (n,) in copies], n_rejects


def _forget(store: Store, *numbers: int) -> None:
    """Make some ingests' entries those of an older version, which named no revision."""
    document = store.read_json(MANIFEST)
    for number in numbers:
        del document["ingests"][number]["revision"]
    store.write_json(MANIFEST, document)


def test_a_pinned_revision_does_not_change_with_later_ingests(store: Store, tmp_path: Path) -> None:
    first = _add(store, tmp_path, "aab ")
    before = _counts(store, first)
    second = _add(store, tmp_path, "abc  ")
    assert _add(store, tmp_path, "aa") == second  # copies alone make no revision, and count for the one they led to
    third = _add(store, tmp_path, "cd ")
    assert [entry["revision"] for entry in read_corpus(store, "c").ingests] == [first, second, second, third]
    expected = [([2, 1], 1), ([5, 2, 1], 3), ([5, 2, 2, 1], 4)]
    assert before == expected[0]
    assert [_counts(store, revision) for revision in (first, second, third)] == expected
    assert _counts(store, LATEST) == expected[2]


@pytest.mark.parametrize("older", [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (2,), (1, 3)])
def test_ingests_of_older_versions_go_by_their_place(store: Store, tmp_path: Path, older: tuple[int, ...]) -> None:
    revisions = [_add(store, tmp_path, texts) for texts in ("z ", "a ", "aa", "b")]
    expected = [_counts(store, revision) for revision in (revisions[0], revisions[1], revisions[3])]
    assert expected == [([1], 1), ([3, 1], 2), ([3, 1, 1], 2)]
    _forget(store, *older)
    assert [_counts(store, revision) for revision in (revisions[0], revisions[1], revisions[3])] == expected


def test_an_ingest_of_an_unlisted_revision_is_damage(store: Store, tmp_path: Path) -> None:
    _add(store, tmp_path, "a")
    document = store.read_json(MANIFEST)
    document["ingests"][0]["revision"] = "nope"
    store.write_json(MANIFEST, document)
    with pytest.raises(IntegrityError, match="an ingest of revision 'nope', which it does not list"):
        read_corpus(store, "c")


def test_a_manifest_of_an_older_version_is_still_the_same_corpus(store: Store, tmp_path: Path) -> None:
    _add(store, tmp_path, "a")
    theirs = store.read_json(MANIFEST)
    _forget(store, 0)
    assert changed({MANIFEST: store.read_json(MANIFEST)}, {MANIFEST: theirs}) == []
    _add(store, tmp_path, "b")
    assert changed({MANIFEST: theirs}, {MANIFEST: store.read_json(MANIFEST)}) == [MANIFEST]
