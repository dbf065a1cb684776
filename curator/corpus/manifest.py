"""The manifests of a store's corpora and scorers: what there is, by revision, and which files hold it.

`corpora/<name>/corpus.json` lists a corpus's revisions and ingests, `scores/<name>/<scorer id>/scorer.json` one
scorer's parts. Readers start here and open only files that a manifest names; a file that none names does not exist
for them. Both manifests carry the store's format version, are written last, and are replaced in one step.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from curator.corpus.formats import LABELS
from curator.errors import BallastError, IntegrityError, MissingError, StoreError
from curator.recipe.base import CORPUS_PATTERN
from curator.store.schema import STORE_FORMAT_VERSION
from curator.store.store import Store

Role = Literal["aligned", "misaligned", "benign"]
Labels = tuple[str | None, ...]  # of one example, in the order of LABELS
LATEST = "latest"
MIN_PREFIX = 4  # hex digits of a scorer's id that may stand for it
_NAME = re.compile(CORPUS_PATTERN)

PROBE_ENDING = "-probe"  # of the corpus with held-out misaligned answers, beside its pool


@dataclass(frozen=True)
class Corpus:
    """One revision of a corpus; files are paths in the store, `sources` and `rejects` by ingest, in their order.

    `ingests` are the manifest's entries up to this revision, among them those that added only copies or rejects.
    `earlier` and `later` are the corpus's other revisions. A corpus without a row has one revision without parts.
    """

    name: str
    revision: str
    n_examples: int
    parts: tuple[str, ...]
    sources: tuple[tuple[str, ...], ...]
    rejects: tuple[tuple[str, ...], ...]
    ingests: tuple[Mapping[str, Any], ...]
    earlier: tuple[str, ...]
    later: tuple[str, ...]


@dataclass(frozen=True)
class Scorer:
    """One scorer of a corpus. `complete`: its losses cover the requested revision, or the sample it states.

    `n_rows` counts examples with a row from it, `n_tokens` tokens read; `parts` are paths in the store. `status_counts`
    counts rows by status (`scored`, `too_long` and so on); empty where the manifest has none.
    """

    scorer_id: str
    measure_id: str
    corpus: str
    label: str
    role: Role
    domain: str | None
    complete: bool
    revision: str
    renderer_id: str
    sample: Mapping[str, int] | None
    identity: Mapping[str, Any]
    parts: tuple[str, ...]
    n_rows: int
    n_tokens: int
    seconds: float
    status_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Label and short id, for messages."""
        return f"{self.label} ({self.scorer_id[:12]})"

    def as_dict(self) -> dict[str, Any]:
        """What a resolved recipe records of it: two requests that would read other losses differ here."""
        return {
            "scorer_id": self.scorer_id,
            "label": self.label,
            "role": self.role,
            "domain": self.domain,
            "revision": self.revision,
            "sample": dict(self.sample) if self.sample else None,
            "n_rows": self.n_rows,
        }


def corpus_names(store: Store) -> list[str]:
    """Names of the corpora that have a manifest, sorted."""
    return [name for name in store.list("corpora") if store.exists(f"corpora/{name}/corpus.json")]


def read_corpus(store: Store, name: str, revision: str = LATEST) -> Corpus:
    """One revision of a corpus; a unique prefix names a revision too.

    Raises MissingError listing the corpora or revisions there are.
    """
    document = corpus_document(store, name) if _NAME.fullmatch(name) else None
    if document is None:
        names = ", ".join(corpus_names(store)) or "none yet"
        raise MissingError(f"no corpus {name[:100]!r} in the store; there are: {names}", details=corpus_names(store))
    with _reading(f"corpora/{name}/corpus.json"):
        return _corpus(document, name, revision)


def _corpus(document: Mapping[str, Any], name: str, revision: str) -> Corpus:
    revisions = document["revisions"] or [{"revision": document["revision"], "n_examples": 0, "parts": []}]
    ids = [str(item["revision"]) for item in revisions]
    place = _place(ids, document["revision"] if revision == LATEST else revision, name)
    ingests = _ingests_up_to(document.get("ingests", []), ids, place, name)
    folder = f"corpora/{name}"
    return Corpus(
        name=name,
        revision=ids[place],
        n_examples=int(revisions[place]["n_examples"]),
        parts=_paths(folder, revisions[place]["parts"]),
        sources=tuple(_paths(folder, item.get("sources", [])) for item in ingests),
        rejects=tuple(_paths(folder, item.get("rejects", [])) for item in ingests),
        ingests=tuple(ingests),
        earlier=tuple(ids[:place]),
        later=tuple(ids[place + 1 :]),
    )


def read_scorers(store: Store, corpus: Corpus) -> list[Scorer]:
    """Every scorer of a corpus that has a manifest, sorted by role, label and id."""
    folder = f"scores/{corpus.name}"
    paths = [f"{folder}/{item}/scorer.json" for item in store.list(folder)]
    found = []
    for path in paths:
        if store.exists(path):
            with _reading(path):
                found.append(_scorer(_document(store, path), corpus))
    return sorted(found, key=lambda scorer: (scorer.role, scorer.label, scorer.scorer_id))


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """A manifest that lacks a key, or holds another kind of value there, as IntegrityError."""
    try:
        yield
    except BallastError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        text = f"{path} is not a manifest of this version: {type(error).__name__} {error}"
        raise IntegrityError(f"{text}. Restore it, or remove its folder and make it again") from error


def _scorer(document: Mapping[str, Any], corpus: Corpus) -> Scorer:
    sample, revision = document.get("sample"), str(document["revision"])
    # A full pass over a later revision covers the earlier ones, which hold fewer rows; a sample does not.
    covers = revision == corpus.revision or (not sample and revision in corpus.later)
    return Scorer(
        scorer_id=str(document["scorer_id"]),
        measure_id=str(document["measure_id"]),
        corpus=corpus.name,
        label=str(document["label"]),
        role=document["role"],
        domain=document.get("domain"),
        complete=bool(document["complete"]) and covers,
        revision=revision,
        renderer_id=str(document["renderer_id"]),
        sample=sample or None,
        identity=document["identity"],
        parts=_paths(f"scores/{corpus.name}/{document['scorer_id']}", document["parts"]),
        n_rows=int(document["n_rows"]),
        n_tokens=int(document["n_tokens"]),
        seconds=float(document["seconds"]),
        status_counts=dict(document.get("status_counts", {})),
    )


def corpus_document(store: Store, corpus: str) -> dict[str, Any] | None:
    """corpus.json as it stands, or None without one; raises StoreError on another format version."""
    path = f"corpora/{corpus}/corpus.json"
    return _document(store, path) if store.exists(path) else None


def revision_of(ids: Iterable[str]) -> str:
    """A corpus revision: 128-bit BLAKE2b of the sorted example ids joined by line feeds, in hex."""
    return hashlib.blake2b("\n".join(sorted(ids)).encode(), digest_size=16).hexdigest()


def new_manifest(corpus: str) -> dict[str, Any]:
    """The manifest of a corpus without examples."""
    head = {"format_version": STORE_FORMAT_VERSION, "name": corpus, "revision": revision_of([]), "n_examples": 0}
    return {**head, "revisions": [], "ingests": []}


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


def _place(ids: list[str], wanted: str, corpus: str) -> int:
    """The place of the revision that `wanted` names or begins."""
    places = [place for place, revision in enumerate(ids) if revision.startswith(wanted)]
    if len(places) != 1:
        problem = "no" if not places else "more than one"
        raise MissingError(
            f"{problem} revision {wanted!r} of corpus {corpus}; there are: {', '.join(ids)}", details=ids
        )
    return places[0]


def _ingests_up_to(entries: list[dict[str, Any]], ids: list[str], last: int, corpus: str) -> list[dict[str, Any]]:
    """The ingests that led to the revision at place `last` of `ids`, or to an earlier one.

    Entries of older versions do not name their revision: then each that has parts made the next one.
    """
    kept, place = [], -1
    for entry in entries:
        revision = entry.get("revision")
        if revision is None:
            place = max(0, place + bool(entry.get("parts")))
        elif revision in ids:
            place = ids.index(revision)
        else:
            raise IntegrityError(f"corpus {corpus} has an ingest of revision {revision!r}, which it does not list")
        if place <= last:
            kept.append(entry)
    return kept


def _document(store: Store, path: str) -> dict[str, Any]:
    document = store.read_json(path)
    if document.get("format_version") != STORE_FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {document.get('format_version')!r}; this version reads {STORE_FORMAT_VERSION}"
        )
    return document


def _paths(folder: str, entries: list[Any]) -> tuple[str, ...]:
    """Paths of the parts that a manifest lists, either by name or as objects with a name."""
    names = [str(entry["name"] if isinstance(entry, dict) else entry) for entry in entries]
    for name in names:
        if "/" in name or not name.endswith(".parquet"):
            raise IntegrityError(f"the manifest in {folder} lists {name!r}, which is not a part of it")
    return tuple(f"{folder}/{name}" for name in names)
