"""The store: one folder, local or on object storage, through fsspec.

Files are written whole (temporary name, fsync and rename locally; one PUT or one multi-part upload elsewhere). Data
files come first and the manifest that names them last, so a reader who starts from a manifest never sees half a write.
Paths are relative POSIX strings. Names that begin with a dot are the store's own and are never listed.
A store of another format version is refused, never misread.
"""

import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import BadInputError, IntegrityError, LockedError, MissingError, StoreError
from curator.store.filesystem import (
    BLOCK_BYTES,
    N_PIECES,
    age_s,
    atomic_write,
    flush_folder,
    flush_to_disk,
    in_our_words,
    is_no_name,
    reach,
    reading_parquet,
)
from curator.store.lock import (
    LOCK_FILE,
    StillHeld,
    bucket_lease,
    folder_lock,
)
from curator.store.schema import STORE_FORMAT_VERSION, Table, arrow_schema, conform
from curator.store.scratch import Scratch

STORE_FILE = "store.json"
ROW_GROUP_ROWS = 5_000
LOCK_POLL_S, LEASE_POLL_S = 0.05, 0.5  # between two tries to lock a local folder, and one in a bucket
_INDENTED = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE


class Store:
    """Files of one store by relative path; see the module's text for how they are written."""

    def __init__(self, root: str | Path) -> None:
        self._fs, self._base, self._local = reach(root)

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
        if found != STORE_FORMAT_VERSION or isinstance(found, bool):
            raise StoreError(
                f"store {self._base} has format version {found!r}; this version of the product reads "
                f"{STORE_FORMAT_VERSION}: use the version that wrote it, or ingest and score again"
            )
        return self

    @property
    def base(self) -> str:
        """The store's place, as messages name it."""
        return self._base

    @property
    def filesystem(self) -> Any:
        """The fsspec file system, for DuckDB's `register_filesystem`; paths are those of `url`."""
        return self._fs

    def url(self, path: str) -> str:
        """What DuckDB and pyarrow open: an absolute path locally, else the full URL."""
        full = self._full(path)
        return full if self._local else str(self._fs.unstrip_protocol(full))

    def local_path(self, path: str) -> Path | None:
        """The path on this machine, or None on object storage."""
        return Path(self._full(path)) if self._local else None

    def file_state(self, path: str) -> str:
        """Size, time and inode of a local file, in hex: another file under its name has another. "none" without one."""
        with suppress(OSError):  # what is missing is reported by whoever reads it
            if self._local:
                state = os.stat(self._full(path))  # noqa: PTH116 - a mix asks for every part of its pool
                return f"{state.st_size:x}-{state.st_mtime_ns:x}-{state.st_ino:x}"
        return "none"

    def exists(self, path: str) -> bool:
        """Whether a file or folder stands there; raises StoreError when the store cannot be asked."""
        with in_our_words("read", path, self._base):
            try:
                os.stat(self._full(path)) if self._local else self._fs.info(self._full(path))  # noqa: PTH116
            except OSError as error:
                if isinstance(error, FileNotFoundError) or is_no_name(error):
                    return False
                raise
        return True

    def open_file(self, path: str) -> BinaryIO:
        """A file that nobody replaces, opened for reading at any place; raises MissingError without one."""
        with in_our_words("read", path, self._base):
            file: BinaryIO = self._fs.open(self._full(path), "rb")
            return file

    def read_bytes(self, path: str, last: int | None = None) -> bytes:
        """The file's bytes, or only the `last` of them (of one that never shrinks), while others may replace it.

        An open file of a bucket (`open_file`) fails where the object is replaced before it is read. Raises
        MissingError without the file.
        """
        with in_our_words("read", path, self._base):
            if self._local:  # in a third of the time that fsspec takes
                with open(self._full(path), "rb") as file:
                    if last is not None:
                        file.seek(max(0, file.seek(0, os.SEEK_END) - last))
                    return file.read()
            start = None if last is None else max(0, self._fs.info(self._full(path))["size"] - last)
            return bytes(self._fs.cat_file(self._full(path), start=start))

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON object; raises MissingError without the file, IntegrityError when it is not a JSON object."""
        try:
            document = orjson.loads(self.read_bytes(path))
        except orjson.JSONDecodeError as error:
            raise IntegrityError(f"{path} in store {self._base} is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise IntegrityError(f"{path} in store {self._base} is not a JSON object")
        return document

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file, whole or some columns, checked against its page checksums.

        Raises MissingError without the file, IntegrityError when it is damaged, StoreError when it cannot be read:
        what could not be fetched is never taken for damaged.
        """
        source = Path(self._full(path)) if self._local else pa.BufferReader(self.read_bytes(path))
        with (
            reading_parquet(path, self._base),
            pq.ParquetFile(source, page_checksum_verification=True) as file,
        ):
            return file.read(columns=None if columns is None else list(columns))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write or replace a file in one step."""
        if not self._local:
            with in_our_words("write", path, self._base):
                self._fs.pipe_file(self._full(path), data)
            return
        with self._replacing(path) as temporary:
            temporary.write_bytes(data)

    def put_file(self, path: str, source: Path) -> None:
        """Copy a file of this machine to the store, in one step: who has an earlier one open goes on reading that."""
        with self._replacing(path) if self._local else self.fill(path) as target:
            shutil.copyfile(source, target)

    @contextmanager
    def fill(self, path: str, *, durable: bool = True) -> Iterator[Path]:
        """A local path of the file's own name, to be written in the block; for folders that `rename_dir` publishes.

        Locally it is the file itself, made durable at the end unless `durable` is false: `rename_dir` does it then. On
        object storage it is uploaded in pieces at the end, a few pieces in memory at once. Raises StoreError when it
        cannot be written.
        """
        full = self._full(path)
        with in_our_words("write", path, self._base):
            if self._local:
                Path(full).parent.mkdir(parents=True, exist_ok=True)
                yield Path(full)
                if durable:
                    flush_to_disk(Path(full))
                return
            with Scratch("write") as scratch:
                local = scratch / PurePosixPath(path).name
                yield local
                self._fs.put_file(str(local), full, chunksize=BLOCK_BYTES, max_concurrency=N_PIECES)

    def write_json(self, path: str, document: dict[str, Any]) -> None:
        """Write or replace a JSON object in one step, indented, keys in the order given."""
        self.write_bytes(path, orjson.dumps(document, option=_INDENTED))

    def fill_json(self, path: str, document: dict[str, Any], *, durable: bool = True) -> None:
        """The same bytes by the way of `fill`."""
        with self.fill(path, durable=durable) as local:
            local.write_bytes(orjson.dumps(document, option=_INDENTED))

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
        with in_our_words("read", path, self._base), self._fs.open(self._full(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def delete(self, path: str) -> None:
        """Remove a file or a whole folder; nothing there is no error."""
        if path.strip("/") in ("", "."):
            raise BadInputError("refused to delete the whole store")
        with in_our_words("write", path, self._base), suppress(FileNotFoundError):
            self._fs.rm(self._full(path), recursive=True)

    def rename_dir(self, temporary: str, final: str) -> bool:
        """Put a finished folder in its place; False (and the folder removed) when one stands there already.

        Locally one rename, after all of it is on the disk. On object storage the files are copied, JSON manifests last,
        over what a copy that was cut off before its manifest may have left; a folder with a manifest stands.
        """
        if self.exists(final) if self._local else self.list(final, "*.json"):
            self.delete(temporary)
            return False
        if self._local:
            source, target = Path(self._full(temporary)), Path(self._full(final))
            target.parent.mkdir(parents=True, exist_ok=True)
            with in_our_words("write", final, self._base):
                flush_folder(source)  # the names in it, before its own
            try:
                source.replace(target)
            except OSError:  # another process put the same folder there first
                if not target.exists():
                    raise
                shutil.rmtree(source)
                return False
            flush_to_disk(target.parent)
            return True
        with in_our_words("write", final, self._base):
            for name in sorted(self.list(temporary), key=lambda name: (name.endswith(".json"), name)):
                self._fs.cp_file(self._full(f"{temporary}/{name}"), self._full(f"{final}/{name}"))
        self.delete(temporary)
        return True

    @contextmanager
    def lock(self, path: str, wait_s: float = 0.0) -> Iterator[StillHeld]:
        """Be the only writer of a folder. See `curator.store.lock`.

        Yields what to call before a manifest is replaced: it raises StoreError when the lock was lost meanwhile.
        Raises LockedError when another process is the writer, and still is after `wait_s` seconds.
        """
        full, deadline_s = self._full(path), time.monotonic() + wait_s
        with ExitStack() as stack:
            while True:
                try:
                    if self._local:
                        still_held = stack.enter_context(folder_lock(Path(full), path, self._base))
                    else:
                        lease = bucket_lease(self._fs, f"{full}/{LOCK_FILE}", path, self._base)
                        still_held = stack.enter_context(lease)
                    break
                except LockedError:
                    if time.monotonic() >= deadline_s:
                        raise
                time.sleep(LOCK_POLL_S if self._local else LEASE_POLL_S)
            yield still_held

    def sweep(self, path: str, keep: set[str]) -> list[str]:
        """Remove a folder's files that are not in `keep`, left-over temporary ones too; returns their names.

        Call it under `lock`: a file that no manifest names is then the remains of an interrupted write.
        """
        if not self.exists(path):
            return []
        with in_our_words("read", path, self._base):
            found = {PurePosixPath(item).name for item in self._fs.ls(self._full(path), detail=False, refresh=True)}
        gone = sorted(name for name in found - keep if name != LOCK_FILE)
        for name in gone:
            self.delete(f"{path}/{name}")
        return gone

    def stale(self, path: str, pattern: str, older_than_s: float) -> Sequence[str]:
        """Sorted names of folders under a folder, hidden ones too, in which nothing was written for so long."""
        found = self._places(path)
        folders = [item.rstrip("/") for item in found if fnmatch(PurePosixPath(item).name, pattern)]
        return sorted(PurePosixPath(item).name for item in folders if age_s(self._fs, item) > older_than_s)

    def modified(self, path: str) -> datetime:
        """When a file was last written, in UTC; raises MissingError without one."""
        with in_our_words("read", path, self._base):
            found: datetime = self._fs.modified(self._full(path))
        return found.astimezone(UTC)

    def age_s(self, path: str) -> float:
        """Seconds since a file, or anything in a folder, was last written; 0 for what is not there."""
        with in_our_words("read", path, self._base):
            return age_s(self._fs, self._full(path))

    def n_bytes(self, path: str) -> int:
        """Bytes of all files in a folder and below it; 0 for what is not there."""
        with in_our_words("read", path, self._base):
            try:
                return int(self._fs.du(self._full(path), total=True))
            except (FileNotFoundError, NotADirectoryError):
                return 0

    def list(self, path: str, pattern: str = "*") -> list[str]:
        """Sorted names (files and folders) directly under a folder; [] when it does not exist."""
        names = {PurePosixPath(item).name for item in self._places(path)}
        return sorted(name for name in names if not name.startswith(".") and fnmatch(name, pattern))

    def _places(self, path: str) -> Sequence[str]:
        """The file system's own paths of what is directly under a folder, hidden ones too; none without the folder."""
        with in_our_words("read", path, self._base):
            try:
                found: Sequence[str] = self._fs.ls(self._full(path), detail=False, refresh=True)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or is_no_name(error):
                    return []
                raise
        return found

    def _full(self, path: str) -> str:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
            raise BadInputError(f"{path[:200]!r} is not a path inside the store")
        return "/".join([self._base, *parts])

    def _replacing(self, path: str) -> AbstractContextManager[Path]:
        """A temporary path beside `path`, on this machine, that takes its place when the block ends."""
        return atomic_write(Path(self._full(path)), durable=True, shown=f"{path} in store {self._base}")


def _write_parquet(data: pa.Table, target: Path | io.BytesIO) -> None:
    pq.write_table(data, target, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)


__all__ = ["Store", "arrow_schema", "conform"]
