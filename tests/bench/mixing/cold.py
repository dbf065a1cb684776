"""One cold choice in a process of its own: `python -m tests.bench.mixing.cold WAY FOLDER` prints its seconds as JSON.

The modules that the way needs are loaded before the clock starts, and the files are put out of the page cache.
"""

import hashlib
import os
import sys
from pathlib import Path
from time import perf_counter

import orjson

from curator.console import say
from curator.query.gaps import warm_up
from tests.bench.mixing.choosing import COLD
from tests.bench.mixing.peers import peer
from tests.bench.mixing.rows import COLUMNS_FILE, PEER_FILE


def main(way: str, folder: Path) -> None:
    """Choose once, and say how long it took."""
    if way == "ours":
        warm_up()  # a process that serves has its connection; the peers' modules load theirs by themselves
    else:
        peer(way)
    for name in (COLUMNS_FILE, PEER_FILE):
        _forget(folder / name)
    started = perf_counter()
    ids = COLD[way](folder)
    seconds = perf_counter() - started
    say(orjson.dumps({"seconds": seconds, "ids_sha256": hashlib.sha256(repr(ids).encode()).hexdigest()}).decode())


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):  # on other systems the files stay cached for all ways alike
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
