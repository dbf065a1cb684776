"""A local copy of what SQL may read of a store in a bucket: corpora and scores, and nothing of a user's.

The process of a statement reaches no network, so that its parts must lie on this machine. One that a manifest names
and that is not here yet is fetched and held against the manifest's hash, where there is one. The manifests are
replaced last: a statement that runs meanwhile reads the old ones.
"""

import hashlib
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curator.corpus.manifest import corpus_names, read_corpus, read_scorers
from curator.errors import IntegrityError
from curator.store.filesystem import atomic_write
from curator.store.scratch import Scratch
from curator.store.store import STORE_FILE, Store

LOOK_EVERY_S = 5.0  # between two looks at the bucket's manifests


@dataclass
class LocalCopy:
    """The copy of one store in a folder of its own under `temp_dir`; thread-safe. Close it to remove it."""

    store: Store
    temp_dir: str | None = None
    _folder: Scratch | None = None
    _have: dict[str, str | None] = field(default_factory=dict)  # parts that are here, with their recorded hash
    _looked_s: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def path(self) -> Path:
        """The folder, brought up to date.

        Raises StoreError when the bucket cannot be reached, IntegrityError for a part with another hash
        than its manifest's.
        """
        with self._lock:
            if self._folder is None:
                self._folder = Scratch("sql", self.temp_dir)
            root = self._folder.path
            if self._looked_s is None or time.monotonic() - self._looked_s > LOOK_EVERY_S:
                self._refresh(root)
                self._looked_s = time.monotonic()
            return root

    def close(self) -> None:
        """Remove the copy."""
        with self._lock:
            if self._folder is not None:
                self._folder.close()
                self._folder, self._looked_s = None, None
                self._have.clear()

    def _refresh(self, root: Path) -> None:
        manifests, wanted = [STORE_FILE], dict[str, str | None]()
        for name in corpus_names(self.store):
            corpus = read_corpus(self.store, name)
            scorers = read_scorers(self.store, corpus)
            manifests += [f"corpora/{name}/corpus.json"]
            manifests += [f"scores/{name}/{scorer.scorer_id}/scorer.json" for scorer in scorers]
            paths = [*corpus.parts, *_flat(corpus.sources), *_flat(corpus.rejects)]
            paths += [path for scorer in scorers for path in scorer.parts]
            hashes = _recorded(self.store, manifests[-len(scorers) - 1 :])
            wanted |= {path: hashes.get(path) for path in paths}
        for path, sha256 in wanted.items():
            if path not in self._have or self._have[path] != sha256:
                self._fetch(root, path, sha256)
        for path in manifests:
            data = self.store.read_bytes(path)
            with atomic_write(root / path, durable=False) as temporary:
                temporary.write_bytes(data)
        self._forget(root, wanted, set(manifests))

    def _fetch(self, root: Path, path: str, sha256: str | None) -> None:
        target = root / path
        digest = hashlib.sha256()
        # Not durable: the copy goes with its process.
        with atomic_write(target, durable=False) as temporary:
            with self.store.open_file(path) as source, temporary.open("wb") as file:
                while chunk := source.read(2**20):
                    digest.update(chunk)
                    file.write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise IntegrityError(f"{path} has SHA-256 {digest.hexdigest()}, its manifest says {sha256}")
        self._have[path] = sha256

    def _forget(self, root: Path, wanted: dict[str, str | None], manifests: set[str]) -> None:
        """Remove what the manifests no longer name. A statement that still reads it keeps its open files."""
        for path in self._have.keys() - wanted.keys():
            (root / path).unlink(missing_ok=True)
            del self._have[path]
        for folder in ("corpora", "scores"):
            for found in list((root / folder).rglob("*.json")):
                if found.relative_to(root).as_posix() not in manifests:
                    shutil.rmtree(found.parent, ignore_errors=True)


def _recorded(store: Store, manifests: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the parts that manifests record one for, by path."""
    return dict(item for path in manifests for item in _hashes(path.rpartition("/")[0], store.read_json(path)))


def _hashes(folder: str, document: Any) -> Iterator[tuple[str, str]]:
    if isinstance(document, dict):
        if isinstance(document.get("name"), str) and isinstance(document.get("sha256"), str):
            yield f"{folder}/{document['name']}", document["sha256"]
        for value in document.values():
            yield from _hashes(folder, value)
    elif isinstance(document, list):
        for value in document:
            yield from _hashes(folder, value)


def _flat(groups: Iterable[tuple[str, ...]]) -> list[str]:
    return [path for group in groups for path in group]
