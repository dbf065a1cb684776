"""One writer at a time for a folder: a kernel lock locally, a lease object in a bucket.

The kernel frees its lock when the holder dies. A bucket has no such lock: the holder creates `.lock` on the
condition that none is there, renews it while it works, and a lease that was not renewed in time may be taken over.
"""

import fcntl
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from curator.errors import LockedError, StoreError
from curator.storage import in_our_words

LOCK_FILE = ".lock"
LEASE_S = 120.0  # a holder that died keeps others out for so long at most


@contextmanager
def folder_lock(folder: Path, path: str, base: str) -> Iterator[None]:
    """Hold a local folder's lock; raises LockedError when another process holds it, StoreError when it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_file = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise StoreError(f"cannot write {path} in store {base}: {error.strerror}") from error
    with lock_file as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(f"another process is writing {path}: wait for it to end") from error
        except OSError as error:
            raise StoreError(f"cannot lock {path} in store {base}: {error.strerror}") from error
        yield


@contextmanager
def bucket_lease(files: Any, key: str, path: str, base: str, lease_s: float = LEASE_S) -> Iterator[None]:
    """Hold a lease at `key` of a file system that can create a file only where none is."""
    lease = _Lease(files, key, path, base, lease_s)
    lease.take()
    renewing = threading.Thread(target=lease.renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        lease.stop.set()
        renewing.join()
        lease.free()


class _Lease:
    def __init__(self, files: Any, key: str, path: str, base: str, lease_s: float) -> None:
        self.files, self.key, self.path, self.base, self.lease_s = files, key, path, base, lease_s
        self.token = secrets.token_hex(8)
        self.stop = threading.Event()

    def take(self) -> None:
        with in_our_words("write", self.path, self.base):
            if self._create() or self._is_ours(held := self._held()):
                return
            if held is not None and time.time() < held["until"]:
                left = held["until"] - time.time()
                raise LockedError(
                    f"another process ({held['holder']}) is writing {self.path}: wait for it to end; if it died, its "
                    f"lease runs out in {left:.0f} s"
                )
            self.files.rm_file(self.key)  # its holder died
            if not self._create() and not self._is_ours(self._held()):
                raise LockedError(f"another process took over {self.path} in this moment: try again")

    def renew(self) -> None:
        while not self.stop.wait(self.lease_s / 4):
            try:
                self.files.pipe_file(self.key, self._document())
            except Exception:  # the next renewal, or the work itself, will meet the same trouble and say so
                continue

    def free(self) -> None:
        with in_our_words("write", self.path, self.base):
            if self._is_ours(self._held()):
                self.files.rm_file(self.key)

    def _create(self) -> bool:
        """Whether the lease object is ours now: it is created only where there is none."""
        try:
            self.files.pipe_file(self.key, self._document(), mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # S3 calls it a failed condition
            if "pre-condition" in str(error).lower() or "precondition" in str(error).lower():
                return False
            raise
        return True

    def _held(self) -> dict[str, Any] | None:
        try:
            return dict(orjson.loads(self.files.cat_file(self.key)))
        except FileNotFoundError:
            return None

    def _is_ours(self, held: dict[str, Any] | None) -> bool:
        # A lost answer to our own request: the repeated one finds the object that the first one made.
        return held is not None and held["token"] == self.token

    def _document(self) -> bytes:
        holder, until = socket.gethostname(), time.time() + self.lease_s
        return orjson.dumps({"token": self.token, "holder": holder, "until": until})
