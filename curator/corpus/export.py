"""A score pool as one file set: a corpus, its scorers' losses, their identities, renderers and samples.

The set holds the store's own files under their own paths (`curator.corpus.archive`). An import checks every byte
before it writes one, compares the pool's manifests with the store's (the same, more, less, or a clash of names), and
writes the corpus's manifest last: a corpus that the store lacked is there as a whole or not at all. Whoever imports a
pool can mix from it without a model, a scorer or torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.console import Progress
from curator.corpus.archive import (
    PoolReader,
    PoolWriter,
    new_pool,
    open_pool,
)
from curator.corpus.manifest import Scorer, named_files, read_corpus, read_scorers
from curator.errors import (
    AmbiguousError,
    BadInputError,
    IntegrityError,
    MissingError,
)
from curator.store.schema import STORE_FORMAT_VERSION
from curator.store.store import Store

Manifest = Mapping[str, Any]
_LATER = ("labels_ignored", "revision")  # of an ingest's entry; older versions did not write them


@dataclass(frozen=True)
class PoolReport:
    """An exported or imported pool. `n_written` counts files that were not there before.

    `left_out` are scorers that do not cover the corpus's latest revision (export).
    """

    pool_id: str
    corpus: str
    revision: str
    n_examples: int
    scorers: tuple[str, ...]
    n_files: int
    n_bytes: int
    n_written: int
    left_out: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def export_pool(store: Store, corpus: str, target: Path, scorers: Sequence[str] | None = None) -> PoolReport:
    """Write a corpus and its complete scorers (or those named, by id, id prefix or label) to a folder or .tar.

    Raises MissingError or AmbiguousError for names, BadInputError when `target` exists, IntegrityError when a stored
    file is not what its manifest says. A failed or killed export leaves nothing at `target`.
    """
    found = read_corpus(store, corpus)
    chosen, left_out = _choose(read_scorers(store, found), corpus, scorers)
    with new_pool(target) as pool, Progress(None, "files", f"exporting {corpus}") as bar:
        document = _add_corpus(store, pool, corpus)
        for scorer in chosen:
            _add_scorer(store, pool, corpus, scorer)
        for renderer in sorted({scorer.renderer_id for scorer in chosen}):
            for name in store.list(f"renderers/{renderer}"):
                pool.add(f"renderers/{renderer}/{name}", store.read_bytes(f"renderers/{renderer}/{name}"))
        for name in store.list(f"samples/{corpus}", "*.json"):
            pool.add(f"samples/{corpus}/{name}", store.read_bytes(f"samples/{corpus}/{name}"))
        bar.advance(len(pool.files))
        written = pool.close(
            {
                "store_format_version": STORE_FORMAT_VERSION,
                "corpus": corpus,
                "revision": document["revision"],
                "n_examples": document["n_examples"],
                "scorers": [scorer.as_dict() for scorer in chosen],
            }
        )
    return _report(written, len(pool.files), tuple(scorer.shown for scorer in left_out))


def import_pool(store: Store, source: Path, expect: str | None = None) -> PoolReport:
    """Bring a pool into the store; what is there already is left alone, so a second import does nothing.

    `expect` is the pool id that the file set must have. Raises IntegrityError for a damaged or cut-off set, and
    BadInputError when a name in it stands for something else in the store; nothing is written then.
    """
    with open_pool(source) as pool:
        if expect is not None and pool.document["pool_id"] != expect:
            raise IntegrityError(f"{source} is pool {pool.document['pool_id']}, not {expect}")
        _check(pool, source)
        folder = f"corpora/{pool.corpus}"
        with store.lock(folder) as still_held:
            current = _current(store, pool)
            manifests = changed(current, {path: pool.read_json(path) for path in _manifests(pool)})
            data = _new_data(store, pool, current)
            keep = {path.rpartition("/")[2] for path in pool.files if path.startswith(f"{folder}/")}
            store.sweep(folder, keep | _named(current, f"{folder}/corpus.json"))
            with Progress(len(data), "files", f"importing {pool.corpus}") as bar:
                for path in data:
                    store.write_bytes(path, pool.read(path))
                    bar.advance()
            still_held()
            for path in manifests:  # the corpus's own comes last
                store.write_bytes(path, pool.read(path))
        return _report(pool.document, len(data) + len(manifests))


def changed(current: Mapping[str, Manifest], brought: Mapping[str, Manifest]) -> list[str]:
    """Paths of the manifests to write, in the order of `brought`: new ones, and those that go on from the store's.

    A corpus goes on from another when it has that one's ingests and revisions, and more; a scorer when it has that
    one's parts, and more. Raises BadInputError listing every name that stands for two different things.
    """
    clashes: list[str] = []
    new: list[str] = []
    for path, theirs in brought.items():
        ours = current.get(path)
        if ours is None:
            new.append(path)
            continue
        differs = _corpus_clash(ours, theirs) if path.endswith("/corpus.json") else _scorer_clash(ours, theirs)
        if differs:
            clashes.append(differs)
        elif _size(theirs) > _size(ours):
            new.append(path)
    if clashes:
        raise BadInputError(f"nothing was imported: {'; '.join(clashes[:3])}", details=clashes)
    return new


def _report(document: dict[str, Any], n_written: int, left_out: tuple[str, ...] = ()) -> PoolReport:
    sizes = [int(file["bytes"]) for file in document["files"]]
    labels = tuple(f"{item['label']} ({item['scorer_id'][:12]})" for item in document["scorers"])
    return PoolReport(
        pool_id=document["pool_id"],
        corpus=document["corpus"],
        revision=document["revision"],
        n_examples=document["n_examples"],
        scorers=labels,
        n_files=len(sizes),
        n_bytes=sum(sizes),
        n_written=n_written,
        left_out=left_out,
    )


def _choose(known: Sequence[Scorer], corpus: str, names: Sequence[str] | None) -> tuple[list[Scorer], list[Scorer]]:
    """The scorers to export, and those left out for not being complete."""
    if names is None:
        complete = [scorer for scorer in known if scorer.complete]
        return complete, [scorer for scorer in known if not scorer.complete]
    chosen: dict[str, Scorer] = {}
    for name in names:
        fits = [scorer for scorer in known if scorer.label == name or scorer.scorer_id.startswith(name)]
        listed = ", ".join(scorer.shown for scorer in fits or known) or "none"
        if len(fits) > 1:
            raise AmbiguousError(f"{name!r} names {len(fits)} scorers of corpus {corpus}: {listed}")
        if not fits:
            raise MissingError(f"corpus {corpus} has no scorer {name!r}; there are: {listed}")
        if not fits[0].complete:
            raise BadInputError(f"scorer {fits[0].shown} is not complete: run its `score` command again")
        chosen[fits[0].scorer_id] = fits[0]
    return list(chosen.values()), []


def _add_corpus(store: Store, pool: PoolWriter, corpus: str) -> dict[str, Any]:
    path = f"corpora/{corpus}/corpus.json"
    data = store.read_bytes(path)
    document: dict[str, Any] = orjson.loads(data)
    for name, sha256 in _corpus_files(document):
        _add_part(store, pool, f"corpora/{corpus}/{name}", sha256)
    pool.add(path, data)
    return document


def _add_scorer(store: Store, pool: PoolWriter, corpus: str, scorer: Scorer) -> None:
    folder = f"scores/{corpus}/{scorer.scorer_id}"
    data = store.read_bytes(f"{folder}/scorer.json")
    for part in orjson.loads(data)["parts"]:
        _add_part(store, pool, f"{folder}/{part['name']}", part["sha256"])
    pool.add(f"{folder}/scorer.json", data)


def _add_part(store: Store, pool: PoolWriter, path: str, sha256: str) -> None:
    pool.add(path, store.read_bytes(path))
    if pool.files[-1].sha256 != sha256:
        raise IntegrityError(f"{path} is not what its manifest says: its SHA-256 is {pool.files[-1].sha256}")


def _corpus_files(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for entry in document["ingests"]:
        for item in (*entry["parts"], *entry["sources"], *entry["rejects"]):
            yield item["name"], item["sha256"]


def _manifests(pool: PoolReader) -> list[str]:
    """The pool's own manifests in the order in which they are written."""
    scorers = sorted(path for path in pool.files if path.startswith("scores/") and path.endswith("/scorer.json"))
    return [*scorers, f"corpora/{pool.corpus}/corpus.json"]


def _check(pool: PoolReader, source: Path) -> None:
    """Check hashes against pool.json, parts against the manifest that names them, and where each path lies."""
    roots = (f"corpora/{pool.corpus}/", f"scores/{pool.corpus}/", f"samples/{pool.corpus}/", "renderers/")
    with Progress(len(pool.files), "files", f"checking {source.name}") as bar:
        for path in pool.files:
            if not path.startswith(roots):
                raise IntegrityError(f"{source}: {path} does not belong to a pool of corpus {pool.corpus}")
            pool.read(path)
            bar.advance()
    for path in _manifests(pool):
        document, folder = pool.read_json(path), path.rpartition("/")[0]
        if document.get("format_version") != STORE_FORMAT_VERSION:
            raise IntegrityError(f"{source}: {path} has format version {document.get('format_version')!r}")
        parts = [(part["name"], part["sha256"]) for part in document["parts"]] if "parts" in document else None
        for name, sha256 in parts if parts is not None else _corpus_files(document):
            listed = pool.files.get(f"{folder}/{name}")
            if listed is None or listed.sha256 != sha256:
                raise IntegrityError(f"{source}: {path} names {name}, which is not in the pool as it says")


def _current(store: Store, pool: PoolReader) -> dict[str, dict[str, Any]]:
    """The store's own manifests under the names that the pool brings."""
    return {path: store.read_json(path) for path in _manifests(pool) if store.exists(path)}


def _new_data(store: Store, pool: PoolReader, current: dict[str, dict[str, Any]]) -> list[str]:
    """Paths of data files to write. One that the store's manifests name with other bytes is a clash."""
    new = []
    manifests = set(_manifests(pool))
    for path, file in pool.files.items():
        if path in manifests or (store.exists(path) and store.sha256(path) == file.sha256):
            continue
        folder, _, name = path.rpartition("/")
        named = any(name in _named(current, f"{folder}/{kind}.json") for kind in ("corpus", "scorer"))
        if store.exists(path) and (named or not path.startswith(("corpora/", "scores/"))):
            raise BadInputError(f"the store has another {path} than the pool: nothing was imported", details=[path])
        new.append(path)
    return sorted(new, key=lambda path: (path.endswith(".json"), path))


def _named(current: dict[str, dict[str, Any]], manifest: str) -> set[str]:
    """File names that a manifest of the store names in its own folder."""
    document = current.get(manifest)
    if document is None:
        return set()
    if manifest.endswith("corpus.json"):
        return named_files(document)
    return {part["name"] for part in document["parts"]}


def _size(document: Manifest) -> int:
    return len(document["ingests"] if "ingests" in document else document["parts"])


def _corpus_clash(ours: Manifest, theirs: Manifest) -> str | None:
    short, long = sorted((ours, theirs), key=_size)
    n_ingests, n_revisions = len(short["ingests"]), len(short["revisions"])
    same = long["revisions"][:n_revisions] == short["revisions"]
    if same and all(map(_same_ingest, long["ingests"][:n_ingests], short["ingests"])):
        return None
    return (
        f"the store's corpus {ours['name']} (revision {ours['revision'][:12]}, {ours['n_examples']:,} examples) is not "
        f"the pool's (revision {theirs['revision'][:12]}, {theirs['n_examples']:,} examples): import into another store"
    )


def _same_ingest(one: Manifest, other: Manifest) -> bool:
    unknown = [name for name in _LATER if name not in one or name not in other]
    return {**one, **dict.fromkeys(unknown)} == {**other, **dict.fromkeys(unknown)}


def _scorer_clash(ours: Manifest, theirs: Manifest) -> str | None:
    name = f"scorer {ours['label']} ({ours['scorer_id'][:12]}) of corpus {ours['corpus']}"
    for field in ("scorer_id", "role", "domain", "identity", "renderer_id"):
        if ours[field] != theirs[field]:
            return f"{name} has {field} {ours[field]!r} in the store and {theirs[field]!r} in the pool"
    mine, its = ({(part["name"], part["sha256"]) for part in document["parts"]} for document in (ours, theirs))
    if mine <= its or its <= mine:
        return None
    folder = f"scores/{ours['corpus']}/{ours['scorer_id']}"
    return f"{name} was scored apart in the store and in the pool: delete {folder} to take the pool's losses"
