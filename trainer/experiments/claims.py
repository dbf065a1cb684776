"""Who is at work on a folder: a kernel lock on a file in it, freed when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curator.errors import BadInputError


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[int | None]:
    """A lock file's descriptor while this process holds it, or None when another one does and `wait` is false.

    The lock belongs to the open file: a child that is given the descriptor goes on holding it when its parent is
    killed, so that nobody starts the same work beside it. Raises BadInputError where the folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BadInputError(f"nothing can be written in {path.parent}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
