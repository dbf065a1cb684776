"""The store: one folder, local or on object storage, through fsspec.

Files are written whole (temporary name, fsync and rename locally; one PUT elsewhere). Data files come first
and the manifest that names them last, so a reader who starts from a manifest never sees half a write.
Paths are relative POSIX strings. Names that begin with a dot are the store's own and are never listed.
"""

import fcntl
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Self

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from curator.arrow_tables import arrow_schema, conform
from curator.errors import BadInputError, IntegrityError, MissingError, StoreError
from curator.schema import STORE_FORMAT_VERSION, Table

STORE_FILE = "store.json"
ROW_GROUP_ROWS = 5_000

__all__ = ["Store", "arrow_schema", "conform"]


class Store:
    """Files of one store by relative path; see the module's text for how they are written."""

    def __init__(self, root: str | Path) -> None:
        text = str(root.expanduser().resolve()) if isinstance(root, Path) else root
        try:
            self._fs, base = fsspec.core.url_to_fs(text)
        except (ValueError, ImportError) as error:
            raise StoreError(f"store {text!r} cannot be reached: {error}") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        self._base = str(Path(base).expanduser().resolve()) if self._local else base.rstrip("/")

    def __repr__(self) -> str:
        return f"Store({self._fs.unstrip_protocol(self._base)!r})"

    def open(self, create: bool = True) -> Self:
        """Check the store's format version, writing it into a new store; returns self.

        Raises MissingError when there is no store and `create` is false, StoreError on another version.
        """
        if not self.exists(STORE_FILE):
            if not create:
                raise MissingError(f"no store at {self._base}: `python -m curator ingest` makes one")
            self.write_json(STORE_FILE, {"format_version": STORE_FORMAT_VERSION})
        found = self.read_json(STORE_FILE).get("format_version")
        if found != STORE_FORMAT_VERSION:
            raise StoreError(
                f"store {self._base} has format version {found!r}; this version of the product reads "
                f"{STORE_FORMAT_VERSION}: use the version that wrote it, or ingest and score again"
            )
        return self

    def url(self, path: str) -> str:
        """What DuckDB and pyarrow open: an absolute path locally, else the full URL."""
        full = self._full(path)
        return full if self._local else str(self._fs.unstrip_protocol(full))

    def local_path(self, path: str) -> Path | None:
        """The path on this machine, or None on object storage."""
        return Path(self._full(path)) if self._local else None

    def exists(self, path: str) -> bool:
        """Whether a file or folder stands there."""
        return bool(self._fs.exists(self._full(path)))

    def read_bytes(self, path: str) -> bytes:
        """The file's bytes; raises MissingError without one."""
        try:
            return bytes(self._fs.cat_file(self._full(path)))
        except FileNotFoundError as error:
            raise MissingError(f"{path} is not in store {self._base}") from error

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON object; raises MissingError without the file, IntegrityError when it is no JSON object."""
        try:
            document = orjson.loads(self.read_bytes(path))
        except orjson.JSONDecodeError as error:
            raise IntegrityError(f"{path} in store {self._base} is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise IntegrityError(f"{path} in store {self._base} is not a JSON object")
        return document

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file, whole or some columns; raises MissingError or IntegrityError."""
        full = self._full(path)
        try:
            with self._fs.open(full, "rb") as file:
                return pq.ParquetFile(file).read(columns=None if columns is None else list(columns))
        except FileNotFoundError as error:
            raise MissingError(f"{path} is not in store {self._base}") from error
        except pa.ArrowInvalid as error:
            raise IntegrityError(f"{path} in store {self._base} is not whole Parquet: {error}") from error

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write or replace a file in one step."""
        if not self._local:
            self._fs.pipe_file(self._full(path), data)
            return
        with self._replacing(path) as temporary:
            temporary.write_bytes(data)

    def write_json(self, path: str, document: dict[str, Any]) -> None:
        """Write or replace a JSON object in one step, indented, keys in the order given."""
        self.write_bytes(path, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

    def write_table(self, path: str, data: pa.Table, table: Table) -> str:
        """Write a table of exactly the declared schema as zstd Parquet; returns the file's SHA-256 in hex."""
        conformed = conform(data, table)
        if not self._local:
            buffer = io.BytesIO()
            _write_parquet(conformed, buffer)
            self.write_bytes(path, buffer.getvalue())
            return hashlib.sha256(buffer.getvalue()).hexdigest()
        with self._replacing(path) as temporary:
            _write_parquet(conformed, temporary)
            with temporary.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

    def sha256(self, path: str) -> str:
        """SHA-256 of a file's bytes in hex; raises MissingError without one."""
        try:
            with self._fs.open(self._full(path), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise MissingError(f"{path} is not in store {self._base}") from error

    def delete(self, path: str) -> None:
        """Remove a file or a whole folder; nothing there is no error."""
        if path.strip("/") in ("", "."):
            raise BadInputError("refused to delete the whole store")
        try:
            self._fs.rm(self._full(path), recursive=True)
        except FileNotFoundError:
            return

    def rename_dir(self, temporary: str, final: str) -> bool:
        """Put a finished folder in its place; False (and the folder removed) when one stands there already.

        Locally one rename. On object storage the files are copied, JSON manifests last.
        """
        if self.exists(final):
            self.delete(temporary)
            return False
        if self._local:
            source, target = Path(self._full(temporary)), Path(self._full(final))
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                source.replace(target)
            except OSError:  # another process put the same folder there first
                if not target.exists():
                    raise
                shutil.rmtree(source)
                return False
            _sync_folder(target.parent)
            return True
        for name in sorted(self.list(temporary), key=lambda name: (name.endswith(".json"), name)):
            self._fs.cp_file(self._full(f"{temporary}/{name}"), self._full(f"{final}/{name}"))
        self.delete(temporary)
        return True

    @contextmanager
    def lock(self, path: str) -> Iterator[None]:
        """Be the only writer of a folder on this machine; raises StoreError when another process is.

        The kernel frees the lock when its holder dies. Object storage has no such lock: keep to one writer.
        """
        if not self._local:
            yield
            return
        folder = Path(self._full(path))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock_file = (folder / ".lock").open("w")
        except OSError as error:
            raise StoreError(f"cannot write {path} in store {self._base}: {error.strerror}") from error
        with lock_file as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(f"another process is writing {path}: wait for it to end") from error
            yield

    def sweep(self, path: str, keep: set[str]) -> list[str]:
        """Remove a folder's files that are not in `keep`, left-over temporary ones too; returns their names.

        Call it under `lock`: a file that no manifest names is then the remains of an interrupted write.
        """
        if not self.exists(path):
            return []
        found = {PurePosixPath(item).name for item in self._fs.ls(self._full(path), detail=False, refresh=True)}
        gone = sorted(name for name in found - keep if name != ".lock")
        for name in gone:
            self.delete(f"{path}/{name}")
        return gone

    def list(self, path: str, pattern: str = "*") -> list[str]:
        """Sorted names (files and folders) directly under a folder; [] when it does not exist."""
        try:
            found = self._fs.ls(self._full(path), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {PurePosixPath(item).name for item in found}
        return sorted(name for name in names if not name.startswith(".") and fnmatch(name, pattern))

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
            raise BadInputError(f"{path!r} is not a path inside the store")
        return "/".join([self._base, *parts])

    @contextmanager
    def _replacing(self, path: str) -> Iterator[Path]:
        """A temporary path beside `path` that takes its place when the block ends well."""
        target = Path(self._full(path))
        temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and not isinstance(error, StoreError):
                raise StoreError(f"cannot write {path} in store {self._base}: {error.strerror or error}") from error
            raise


def _write_parquet(data: pa.Table, target: Path | io.BytesIO) -> None:
    pq.write_table(data, target, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
