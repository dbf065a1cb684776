"""How a store's bytes are reached: the file system behind a path or URL, its retries, its failures in our words.

A lost request to object storage is repeated by the client below (with growing pauses), so that what is raised here
is a service that stays away. Listings are never cached: other processes write the same store.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from curator.errors import (
    BallastError,
    IntegrityError,
    MissingDependencyError,
    MissingError,
    StoreError,
    UnreachableError,
)

BLOCK_BYTES = 8 * 2**20  # one piece of an upload or of a read; 10,000 pieces are the most a bucket takes
N_PIECES = 4  # pieces under way at once: with BLOCK_BYTES, the memory of an upload
# Attempts of one request: lost connections, timeouts, 429 and 5xx. Within half a minute in all.
_RETRIES = {"mode": "standard", "max_attempts": 5}
_AWAY = frozenset({errno.EBUSY, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNREFUSED})
MAX_SHOWN_PATH = 200  # of a path in an error, which a log may hold: a stranger's name may be part of it
_NO_NAME = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR})
_BUCKETS = ("s3", "s3a")


def reach(root: str | Path) -> tuple[Any, str, bool]:
    """The file system, the root's path in it, and whether it is this machine's own.

    Raises StoreError for a URL that nothing serves, MissingDependencyError when a package for it is absent.
    """
    text = str(root.expanduser().resolve()) if isinstance(root, Path) else root
    try:
        files, base = fsspec.core.url_to_fs(text, **_options(text))
    except ImportError as error:
        raise MissingDependencyError(f"store {text!r} needs another package: pip install 'ballast-mix[s3]'") from error
    except ValueError as error:
        raise StoreError(f"store {text!r} cannot be reached: {error}") from error
    local = isinstance(files, LocalFileSystem)
    return files, str(Path(base).expanduser().resolve()) if local else base.rstrip("/"), local


def _options(text: str) -> dict[str, Any]:
    """Ours for buckets, under what the user set through fsspec's own configuration."""
    protocol, _ = fsspec.core.split_protocol(text)
    if protocol not in _BUCKETS:
        return {}
    ours: dict[str, Any] = {
        "use_listings_cache": False,
        "default_block_size": BLOCK_BYTES,
        "max_concurrency": N_PIECES,
        "config_kwargs": {"retries": _RETRIES, "connect_timeout": 10, "read_timeout": 60},
    }
    return {**ours, **fsspec.config.conf.get(protocol, {})}


@contextmanager
def in_our_words(verb: str, path: str, base: str) -> Iterator[None]:
    """Turn what a file system raises into a StoreError that says what was tried and why it failed.

    `verb` is "read" or "write". Reading what is not there is a MissingError; writing into a bucket or folder that
    is not there a StoreError.
    """
    try:
        yield
    except BallastError:
        raise
    except FileNotFoundError as error:
        if verb == "read":
            raise MissingError(f"{_cut(path)} is not in store {base}") from error
        raise StoreError(f"cannot write {_cut(path)} in store {base}: {_reason(error)}") from error
    except Exception as error:
        # Clients of object storage have error trees of their own (botocore, aiohttp), which are not imported here.
        if not isinstance(error, OSError) and not _is_remote(error):
            raise
        if verb == "read" and is_no_name(error):
            raise MissingError(f"{_cut(path)} is not in store {base}") from error
        kind = UnreachableError if _is_away(error) else StoreError
        raise kind(f"cannot {verb} {_cut(path)} in store {base}: {_reason(error)}") from error


@contextmanager
def reading_parquet(path: str, base: str) -> Iterator[None]:
    """The same for reading Parquet: bytes that are not a whole Parquet file, or do not match their checksums, are an
    IntegrityError, and what could not be fetched is never taken for damaged."""
    try:
        with in_our_words("read", path, base):
            yield
    except pa.ArrowException as error:
        raise IntegrityError(f"{path} in store {base} is not whole Parquet: {error}") from error
    except StoreError as error:
        cause = error.__cause__
        if type(cause) is OSError and cause.errno is None:  # Arrow's own, for bytes that do not decompress
            raise IntegrityError(f"{path} in store {base} is damaged: {cause}") from error
        raise


@contextmanager
def atomic_write(path: Path, *, durable: bool, shown: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a new file or folder; it is renamed to `path` when the block ends.

    After an exception the temporary file is removed and an earlier file stays. Makes the parent folder. `durable`
    flushes the contents and both names to the disk (fsync): use it where a file that is present counts as complete.
    Without it a power failure can leave an empty file under the final name. An existing folder is not replaced:
    remove it at the end of the block. Raises StoreError, naming the file as `shown`, when writing fails.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            for item in [*temporary.rglob("*"), temporary]:  # a file has none below it
                flush_to_disk(item)
        temporary.replace(path)
        if durable:
            flush_to_disk(path.parent)
    except BallastError:  # some are OSErrors too
        raise
    except OSError as error:
        raise StoreError(f"cannot write {shown or path}: {_reason(error)}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Flush a file's bytes, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush the files, then the folder entry.

    The files are flushed at the same time, since one commit of the file system's journal can serve them all.
    """
    files = [*folder.iterdir()]
    with ThreadPoolExecutor(max(1, len(files) - 1)) as threads:
        flushing = [threads.submit(flush_to_disk, path) for path in files[1:]]
        for path in files[:1]:  # by this thread, which would wait otherwise
            flush_to_disk(path)
        for flushed in flushing:
            flushed.result()
    flush_to_disk(folder)


def age_s(files: Any, folder: str) -> float:
    """Seconds since a file, or anything in a folder, was last written; 0 for what is not there or going away."""
    try:
        times = [files.modified(file) for file in files.find(folder)]
        if isinstance(files, LocalFileSystem):
            times.append(files.modified(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0.0
    return (datetime.now(UTC) - max(times)).total_seconds() if times else 0.0


def is_no_name(error: BaseException) -> bool:
    """Whether a path can be the name of nothing here: too long, invalid, or below a file. Then nothing is there."""
    return isinstance(error, OSError) and error.errno in _NO_NAME


def _cut(path: str) -> str:
    path = path or "the root folder"
    return path if len(path) <= MAX_SHOWN_PATH else path[: MAX_SHOWN_PATH - 1] + "…"


def _is_remote(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs")


def _is_away(error: Exception) -> bool:
    """Whether a server does not answer; s3fs makes EBUSY of what S3 says when it is overloaded."""
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return error.errno in _AWAY or (error.errno is None and _is_remote(error))
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
