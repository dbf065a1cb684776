"""Temporary folders that outlive no process: what a killed one leaves is found and removed by the next.

A folder is held by a lock of the kernel's (flock) as long as its process lives, whatever ends it. It gets its name only
once it is locked, so that a named folder without a lock is always one left behind.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

KINDS = ("upload", "sql", "job", "write", "audit", "mix")  # of temporary places
HIDDEN = "hidden"  # the kind for folders of a store: of its own mode, and named so that no listing shows them
UNNAMED = ".ballast-new-"
GRACE_S = 3600.0  # for a folder between its making and its lock


class Scratch:
    """A folder of this process under `parent` (None: the system's); close it to remove it, unless it was moved away.

    It is named `ballast-KIND-...` and this user's alone; of the kind HIDDEN `.ballast-hidden-...`, with the usual mode.
    """

    path: Path
    _lock = -1  # also where the folder could not be made: closing it does nothing

    def __init__(self, kind: str, parent: str | Path | None = None) -> None:
        assert kind in (*KINDS, HIDDEN)
        self.path = unnamed = Path(parent or tempfile.gettempdir()) / f"{UNNAMED}{secrets.token_hex(8)}"
        unnamed.mkdir(0o777 if kind == HIDDEN else 0o700)
        self._lock = os.open(unnamed, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: its folders are never swept
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = unnamed.rename(unnamed.with_name(f"{_prefix(kind)}{secrets.token_hex(8)}"))

    def close(self) -> None:
        """Remove the folder; again it does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _prefix(kind: str) -> str:
    return f".ballast-{kind}-" if kind == HIDDEN else f"ballast-{kind}-"


def sweep_scratch(*parents: str | Path | None) -> int:
    """Remove the folders whose process has ended, under `parents` and the system's own; returns how many went."""
    places = {Path(parent) for parent in parents if parent is not None} | {Path(tempfile.gettempdir())}
    return sum(map(sweep_folder, places))


def sweep_folder(place: Path) -> int:
    """The same for one place."""
    return sum(map(_remove_if_left, _found(place)))


def _found(place: Path) -> Iterator[Path]:
    for kind in (*KINDS, HIDDEN):
        yield from place.glob(f"{_prefix(kind)}*")
    for path in place.glob(f"{UNNAMED}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > GRACE_S:
                yield path


def _remove_if_left(path: Path) -> bool:
    """Remove a folder of this user that nobody holds; what cannot be opened is left alone."""
    try:
        found = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, another user's, or no folder
        return False
    try:
        if os.fstat(found).st_uid != os.geteuid():
            return False
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        return True
    except OSError:  # its process lives
        return False
    finally:
        os.close(found)
