"""What a corpus is: its manifest `corpora/<name>/corpus.json`, its revisions and the parts each has.

The manifest is replaced last and atomically. A file of the folder that it does not name is not there for readers.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from curator.errors import MissingError, StoreError
from curator.formats import LABELS
from curator.store import Store

CORPUS_FORMAT_VERSION = 1

Labels = tuple[str | None, ...]  # of one example, in the order of LABELS


@dataclass(frozen=True)
class PartInfo:
    """One Parquet part of a corpus: file name inside its folder, rows, SHA-256 of the file."""

    name: str
    n_rows: int
    sha256: str


@dataclass(frozen=True)
class CorpusInfo:
    """What corpus.json says: the latest revision with its parts, all revisions and all ingests."""

    name: str
    revision: str
    n_examples: int
    parts: tuple[PartInfo, ...]
    revisions: tuple[dict[str, Any], ...]
    ingests: tuple[dict[str, Any], ...]

    def parts_of(self, revision: str) -> tuple[PartInfo, ...]:
        """Parts of a revision ("latest" or its hash); raises MissingError naming the known ones."""
        if revision in ("latest", self.revision):
            return self.parts
        for known in self.revisions:
            if known["revision"] == revision:
                return tuple(PartInfo(**part) for part in known["parts"])
        names = ", ".join(str(known["revision"]) for known in self.revisions[-5:])
        raise MissingError(f"corpus {self.name} has no revision {revision}; the last ones are {names}")


def corpus_info(store: Store, corpus: str) -> CorpusInfo:
    """What the store knows of a corpus; raises MissingError naming the corpora there are."""
    document = read_manifest(store, corpus)
    if document is None:
        known = ", ".join(corpus_names(store)) or "none yet"
        raise MissingError(f"there is no corpus {corpus}; the store has: {known}")
    revisions = document["revisions"]
    parts = tuple(PartInfo(**part) for part in revisions[-1]["parts"]) if revisions else ()
    return CorpusInfo(
        name=corpus,
        revision=document["revision"],
        n_examples=document["n_examples"],
        parts=parts,
        revisions=tuple(revisions),
        ingests=tuple(document["ingests"]),
    )


def corpus_names(store: Store) -> list[str]:
    """Names of the corpora that have a manifest, sorted."""
    return [name for name in store.list("corpora") if store.exists(f"corpora/{name}/corpus.json")]


def revision_of(ids: Iterable[str]) -> str:
    """A corpus revision: 128-bit BLAKE2b of the sorted example ids joined by line feeds, in hex."""
    return hashlib.blake2b("\n".join(sorted(ids)).encode(), digest_size=16).hexdigest()


def new_manifest(corpus: str) -> dict[str, Any]:
    """The manifest of a corpus without examples."""
    head = {"format_version": CORPUS_FORMAT_VERSION, "name": corpus, "revision": revision_of([]), "n_examples": 0}
    return {**head, "revisions": [], "ingests": []}


def read_manifest(store: Store, corpus: str) -> dict[str, Any] | None:
    """corpus.json as it stands, or None without one; raises StoreError on another format version."""
    path = f"corpora/{corpus}/corpus.json"
    if not store.exists(path):
        return None
    document = store.read_json(path)
    if document.get("format_version") != CORPUS_FORMAT_VERSION:
        raise StoreError(f"corpus {corpus} has format version {document.get('format_version')!r}, not 1")
    return document


def named_files(document: dict[str, Any]) -> set[str]:
    """Names of every file in a corpus folder that belongs to it, the manifest included."""
    kinds = ("parts", "sources", "rejects")
    return {"corpus.json"} | {item["name"] for entry in document["ingests"] for kind in kinds for item in entry[kind]}


def known_labels(store: Store, document: dict[str, Any]) -> dict[bytes, Labels]:
    """Example ids of the latest revision, 16 bytes each, with the stored labels; equal ones share a tuple."""
    known: dict[bytes, Labels] = {}
    shared: dict[Labels, Labels] = {}
    for part in document["revisions"][-1]["parts"] if document["revisions"] else []:
        table = store.read_table(f"corpora/{document['name']}/{part['name']}", ["example_id", *LABELS])
        labels = zip(*(table[label].to_pylist() for label in LABELS), strict=True)
        for digest, values in zip(table["example_id"].to_pylist(), labels, strict=True):
            known[bytes.fromhex(digest)] = shared.setdefault(values, values)
    return known
