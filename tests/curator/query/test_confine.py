"""What a confined process cannot do any more, each tried in a process of its own."""

import json
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from curator.query.confine import available
from curator.query.sandbox_client import MIB, Sandbox, SqlLimits, StatementStoppedError
from tests.api.serving import scored_store

THERE = available()
TRIED = {
    "reading what was named": "open(allowed).read()",
    "reading another file": "open(other).read()",
    "reading the password file": "open('/etc/passwd').read()",
    "listing a folder": "os.listdir(os.path.dirname(other))",
    "writing": "open(allowed, 'w')",
    "appending": "open(allowed, 'a')",
    "a new file": "open(other + '.new', 'w')",
    "removing": "os.unlink(allowed)",
    "renaming": "os.rename(allowed, other)",
    "emptying": "os.truncate(allowed, 0)",
    "a folder": "os.mkdir(other + '.d')",
    "a link": "os.symlink('/', other + '.l')",
    "a socket": "socket.socket()",
    "a socket pair": "socket.socketpair()",
    "a process": "os.fork()",
    "a program": "os.execv('/bin/true', ['true'])",
    "a signal": "os.kill(os.getppid(), 0)",
    "a thread": "t = threading.Thread(target=print); t.start(); t.join()",
    "a module": "import wave",
}
LEFT = {"reading what was named", "a thread", "a module"}
FILES_ALONE = {"reading another file", "reading the password file", "listing a folder"}
PROGRAM = """
import json, os, socket, sys, threading
import sql
from curator.query.confine import code_folders, confine
allowed, other, action = sys.argv[1:]
assert confine([allowed, *code_folders()]) == json.loads(sys.stdin.read())
try:
    exec(action)
except (PermissionError, OSError) as error:
    sys.exit("refused" if isinstance(error, PermissionError) else repr(error))
"""


@pytest.mark.skipif(not THERE["seccomp"], reason="this kernel has no seccomp filters")
@pytest.mark.parametrize("name", TRIED)
def test_a_confined_process_reads_its_parts_and_no_more(name: str, tmp_path: Path) -> None:
    if name in FILES_ALONE and not THERE["landlock"]:
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "allowed").write_text("x")
    (tmp_path / "other").write_text("y")
    arguments = [str(tmp_path / "allowed"), str(tmp_path / "other"), TRIED[name]]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], input=json.dumps(THERE), capture_output=True, text=True, timeout=60
    )
    if name in LEFT:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stderr.strip()) == (1, "refused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["allowed", "other"]
    assert (tmp_path / "allowed").read_text() == "x"


GREEDY = {
    "a list": "select list(repeat('x', 1000) || a.range || b.range) from range(3000) a, range(1000) b",
    "a set": "select count(distinct hash(a.range * 7919 + b.range)) from range(30000) a, range(1000) b",
    "a text": "select string_agg(repeat('y', 100000) || range, '') from range(20000)",
    "a pattern": "select regexp_replace(repeat('ab', 50000000), 'a', 'bb', 'g')",
    "rows": "select repeat('x', 1000) from range(10000)",
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_statements_process_keeps_to_its_memory(name: str, tmp_path: Path) -> None:
    scored_store(tmp_path)
    limits, ended = SqlLimits(), threading.Event()
    sandbox = Sandbox(lambda: str(tmp_path), limits)

    def statement() -> None:
        with suppress(StatementStoppedError):  # whether it is stopped or answered: the memory is what counts
            sandbox.run(GREEDY[name])
        ended.set()

    sandbox.run("select 1")  # a process that is not yet one of the sandbox's counts the memory of the tests
    running, peak = threading.Thread(target=statement), 0
    running.start()
    while not ended.wait(0.005):
        for process in psutil.Process().children(recursive=True):  # the one that is forked from, and its child
            with suppress(OSError, psutil.Error):
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
    running.join()
    sandbox.close()
    assert 100 * MIB < peak * 1024 <= limits.memory_bytes
