"""A score pool's file set on disk: a folder or a .tar, written whole or not at all, read file by file with its hash.

`pool.json` comes last, so that a set that was cut off has none. The same files give the same bytes: a .tar carries
no times and no owners.
"""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.errors import (
    BadInputError,
    IntegrityError,
    MissingError,
    StoreError,
)
from curator.store.filesystem import atomic_write

POOL_FILE = "pool.json"
POOL_FORMAT_VERSION = 1
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_PATH = re.compile(rf"{_NAME}(/{_NAME})+")


@dataclass(frozen=True)
class PoolFile:
    """One file of a pool: its path in the store, its size and its hash."""

    path: str
    bytes: int
    sha256: str


def pool_id(files: Iterable[PoolFile]) -> str:
    """128-bit hash of a pool's paths, sizes and file hashes: two pools with one hash have the same bytes."""
    listed = [[file.path, file.bytes, file.sha256] for file in files]
    return hashlib.blake2b(orjson.dumps(listed), digest_size=16).hexdigest()


class PoolWriter:
    """Takes a pool's files one by one; `close` adds pool.json."""

    def __init__(self, target: Path, as_tar: bool) -> None:
        self._target = target
        self._file = target.open("wb") if as_tar else None
        self._tar = tarfile.open(fileobj=self._file, mode="w") if self._file else None  # noqa: SIM115
        self.files: list[PoolFile] = []

    def add(self, path: str, data: bytes) -> None:
        """Write one file."""
        self.files.append(PoolFile(path, len(data), hashlib.sha256(data).hexdigest()))
        self._write(path, data)

    def close(self, head: dict[str, Any]) -> dict[str, Any]:
        """Write pool.json from `head` and the files; returns it."""
        files = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in self.files]
        document = {"format_version": POOL_FORMAT_VERSION, "pool_id": pool_id(self.files), **head, "files": files}
        self._write(POOL_FILE, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        if self._tar is not None and self._file is not None:
            self._tar.close()
            self._file.close()
        return document

    def release(self) -> None:
        """Close without writing pool.json."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _write(self, path: str, data: bytes) -> None:
        if self._tar is not None:
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o644
            self._tar.addfile(member, io.BytesIO(data))
            return
        file = self._target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


@contextmanager
def new_pool(target: Path) -> Iterator[PoolWriter]:
    """A writer whose file set takes its place at `target` when the block ends well.

    Raises BadInputError when something stands there already, StoreError when it cannot be written.
    """
    if target.exists():
        raise BadInputError(f"{target} exists already: give another name, or remove it")
    as_tar = target.suffix == ".tar"
    if not as_tar and target.suffix in (".gz", ".zip", ".tgz", ".zst"):
        raise BadInputError(f"{target}: a pool is a folder or a .tar (its parts are compressed already)")
    with atomic_write(target, durable=True) as temporary:
        if not as_tar:
            temporary.mkdir()
        writer = PoolWriter(temporary, as_tar)
        try:
            yield writer
        finally:
            writer.release()


class PoolReader:
    """A file set opened for reading; `files` are those that pool.json lists, by path."""

    def __init__(self, source: Path, tar: tarfile.TarFile | None) -> None:
        self._source, self._tar = source, tar
        self._members = _members(tar, source) if tar is not None else {}
        self.document = self._document()
        self.corpus = str(self.document["corpus"])
        self.files = {file.path: file for file in map(_pool_file, self.document["files"])}
        if self.document["pool_id"] != pool_id(self.files.values()):
            raise IntegrityError(f"{source}: pool.json is not the one that was exported (its pool_id does not follow)")

    def read(self, path: str) -> bytes:
        """A file's bytes; raises IntegrityError when they are not those that pool.json lists."""
        listed = self.files.get(path)
        if listed is None:
            raise IntegrityError(f"{self._source}: a manifest names {path}, which the pool does not hold")
        data = self._raw(path)
        if data is None:
            raise IntegrityError(f"{self._source} lacks {path}, which its pool.json lists")
        if len(data) != listed.bytes or hashlib.sha256(data).hexdigest() != listed.sha256:
            raise IntegrityError(f"{self._source}: {path} is damaged: its SHA-256 is not the one in pool.json")
        return data

    def read_json(self, path: str) -> dict[str, Any]:
        """A listed JSON object."""
        document = orjson.loads(self.read(path))
        if not isinstance(document, dict):
            raise IntegrityError(f"{self._source}: {path} is not a JSON object")
        return document

    def _raw(self, path: str) -> bytes | None:
        if self._tar is None:
            file = self._source / path
            return file.read_bytes() if file.is_file() else None
        member = self._members.get(path)
        opened = self._tar.extractfile(member) if member is not None else None
        return opened.read() if opened is not None else None

    def _document(self) -> dict[str, Any]:
        data = self._raw(POOL_FILE)
        if data is None:
            raise BadInputError(f"{self._source} has no {POOL_FILE}: it is not an exported pool, or was cut off")
        try:
            document = orjson.loads(data)
            found = document["format_version"]
            if found != POOL_FORMAT_VERSION:
                raise StoreError(
                    f"{self._source} has pool format version {found!r}; this version of the product reads "
                    f"{POOL_FORMAT_VERSION}: import it with the version that wrote it"
                )
            _ = document["corpus"], document["files"], document["pool_id"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise IntegrityError(f"{self._source}: its {POOL_FILE} is damaged: {error!r}") from error
        return dict(document)


@contextmanager
def open_pool(source: Path) -> Iterator[PoolReader]:
    """A pool's folder or .tar; raises MissingError, BadInputError, StoreError or IntegrityError for anything else."""
    if not source.exists():
        raise MissingError(f"there is no pool {source}")
    if source.is_dir():
        yield PoolReader(source, None)
        return
    try:
        tar = tarfile.open(source, "r:")  # noqa: SIM115 - closed below
    except (tarfile.TarError, OSError) as error:
        raise BadInputError(f"{source} is neither a folder nor a .tar of an exported pool: {error}") from error
    with tar:
        yield PoolReader(source, tar)


def _members(tar: tarfile.TarFile, source: Path) -> dict[str, tarfile.TarInfo]:
    try:
        return {member.name: member for member in tar.getmembers() if member.isreg()}
    except (tarfile.TarError, OSError) as error:
        raise IntegrityError(f"{source} is damaged or was cut off: {error}") from error


def _pool_file(entry: Any) -> PoolFile:
    try:
        file = PoolFile(str(entry["path"]), int(entry["bytes"]), str(entry["sha256"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"pool.json lists a file without path, bytes or sha256: {entry!r}") from error
    if not _PATH.fullmatch(file.path):
        raise IntegrityError(f"pool.json lists {file.path!r}, which is not a path inside a store")
    return file
