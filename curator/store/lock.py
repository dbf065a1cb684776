"""One writer at a time for a folder: a kernel lock locally, a lease object in a bucket.

The kernel frees its lock when the holder dies. A bucket has no such lock: the holder creates `.lock` on the
condition that none is there, renews it while it works, and a lease that was not renewed in time may be taken over.
Every write and removal of it is conditional on the object that was read (ETag), so that of two that find the same
lease run out one gets it, and a holder that lost its own learns of it.
"""

import fcntl
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from curator.errors import LockedError, StoreError
from curator.store.filesystem import in_our_words

LOCK_FILE = ".lock"
LEASE_S = 120.0  # a holder that died keeps others out for so long at most
# What S3 says of a condition that does not hold (412), or that a write beside it made undecidable (409).
_REFUSED = ("pre-condition", "precondition", "conditional request")

StillHeld = Callable[[], None]
"""Raises StoreError when the lock was lost meanwhile: ask it before a step that only the one writer may take."""


@contextmanager
def folder_lock(folder: Path, path: str, base: str) -> Iterator[StillHeld]:
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
        yield lambda: None  # the kernel takes it from no living process


@contextmanager
def bucket_lease(files: Any, key: str, path: str, base: str, lease_s: float = LEASE_S) -> Iterator[StillHeld]:
    """Hold a lease at `key` of a file system that can create a file only where none is.

    A lease that ran out is taken over on S3 alone, which can replace an object on a condition; elsewhere the file must
    be removed by hand.
    """
    lease = Lease(files, key, path, base, lease_s)
    lease.take()
    renewing = threading.Thread(target=lease.keep, daemon=True)
    renewing.start()
    try:
        yield lease.renew
    finally:
        lease.stop.set()
        renewing.join()
        lease.free()


class Lease:
    """One holder's side of the lease object; see `bucket_lease`."""

    def __init__(self, files: Any, key: str, path: str, base: str, lease_s: float = LEASE_S) -> None:
        self.files, self.key, self.path, self.base, self.lease_s = files, key, path, base, lease_s
        self.token = secrets.token_hex(8)
        self.stop = threading.Event()
        self.lost = False
        self._etag: str | None = None  # of the object as we last wrote or read it
        self._mutex = threading.Lock()  # the renewing thread's writes and the holder's
        self._conditional = hasattr(files, "call_s3")

    def take(self) -> None:
        """Create the lease, or take over one that ran out; raises StoreError when another process has it."""
        with in_our_words("write", self.path, self.base):
            if self._create() or self._is_ours(held := self._held()):
                return
            if held is None and self._create():  # its holder has just ended
                return
            if held is not None and time.time() < held["until"]:
                left = held["until"] - time.time()
                raise LockedError(
                    f"another process ({held['holder']}) is writing {self.path}: wait for it to end; if it died, its "
                    f"lease runs out in {left:.0f} s"
                )
            if not self._conditional:
                raise StoreError(
                    f"{self.key} was left by a process that died ({held['holder'] if held else 'gone now'}), and this "
                    "kind of storage cannot replace it safely: remove it when nobody writes there"
                )
            if not (self._replace() or self._is_ours(self._held())):
                raise LockedError(f"another process took over {self.path} in this moment: try again")

    def keep(self) -> None:
        """Renew until `stop` is set or the lease is lost; for a thread beside the work."""
        while not self.lost and not self.stop.wait(self.lease_s / 4):
            try:
                self.renew()
            except Exception:  # the next renewal, or the holder's own, will meet the same trouble and say so
                continue

    def renew(self) -> None:
        """Hold it for another `lease_s`; raises StoreError, and touches nothing, when another process holds it."""
        with self._mutex, in_our_words("write", self.path, self.base):
            if not self.lost and not self._replace():
                # A lost answer to our own request leaves our token there under an ETag that we have not seen.
                self.lost = not (self._is_ours(self._held()) and self._replace())
            if self.lost:
                raise StoreError(
                    f"the lease on {self.path} ran out and another process took it over: nothing was listed; try again"
                )

    def free(self) -> None:
        """Remove the lease if it is ours."""
        with in_our_words("write", self.path, self.base):
            if self.lost or not self._is_ours(self._held()):
                return
            if not self._conditional:
                self.files.rm_file(self.key)
                return
            self._ask("delete_object", IfMatch=self._etag)

    def _create(self) -> bool:
        """Whether the lease object is ours now: it is created only where there is none."""
        if self._conditional:
            return self._ask("put_object", Body=self._document(), IfNoneMatch="*")
        try:
            self.files.pipe_file(self.key, self._document(), mode="create")
        except FileExistsError:
            return False
        return True

    def _replace(self) -> bool:
        """Whether our document stands now in the place of the one that was last read or written."""
        if self._conditional:
            return self._ask("put_object", Body=self._document(), IfMatch=self._etag or "none")
        if not self._is_ours(self._held()):
            return False
        self.files.pipe_file(self.key, self._document())
        return True

    def _ask(self, operation: str, **arguments: Any) -> bool:
        """Whether a conditional request was let through."""
        bucket, key, _ = self.files.split_path(self.key)
        try:
            answer = self.files.call_s3(operation, Bucket=bucket, Key=key, **arguments)
        except FileExistsError:
            return False
        except FileNotFoundError:
            if "IfMatch" in arguments:  # the object that it should match is gone
                return False
            raise
        except OSError as error:
            if any(words in str(error).lower() for words in _REFUSED):
                return False
            raise
        self._etag = answer.get("ETag")
        return True

    def _held(self) -> dict[str, Any] | None:
        try:
            # The ETag first: an object that is replaced before its text is read then fails the condition.
            self._etag = self.files.info(self.key).get("ETag")
            return dict(orjson.loads(self.files.cat_file(self.key)))
        except FileNotFoundError:
            return None

    def _is_ours(self, held: dict[str, Any] | None) -> bool:
        # A lost answer to our own request: the repeated one finds the object that the first one made.
        return held is not None and held["token"] == self.token

    def _document(self) -> bytes:
        holder, until = socket.gethostname(), time.time() + self.lease_s
        return orjson.dumps({"token": self.token, "holder": holder, "until": until})
