"""Redis and PostgreSQL servers of one test, on sockets in a folder of their own."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def redis() -> Iterator[str]:
    """Skips where Redis is not installed; yields its URL."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "redis.sock"
        command = [server, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        with _running(command, path.exists):
            yield f"unix://{path}"


@contextmanager
def postgresql() -> Iterator[str]:
    """Skips where PostgreSQL is not installed; yields the URL of an empty database."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'ballast-mix[postgresql]')")
    binaries = _postgresql_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = Path(folder) / "data"
        make = [str(binaries / "initdb"), "-D", str(data), "-U", "ballast", "--auth=trust", "--no-sync"]
        subprocess.run(make, user=user, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        command = [str(binaries / "postgres"), "-D", str(data), "-k", folder, "-c", "listen_addresses=", "-F"]
        url = f"postgresql://ballast@/postgres?host={folder}"
        with _running(command, lambda: _answers(url), user=user, cwd=folder):
            yield url


def _postgresql_binaries() -> Path | None:
    """The newest server's folder; Debian keeps it out of the path."""
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).resolve().parent
    folders = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((path.parent for path in folders), key=lambda path: int(path.parent.name), default=None)


def _answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def _running(
    command: list[str], ready: Callable[[], bool], user: str | None = None, cwd: str | None = None
) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd=cwd)
    try:
        deadline = time.monotonic() + 30
        while not ready():
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} does not answer"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()
