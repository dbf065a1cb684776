"""Ingest, killed with SIGKILL before and after every rename and at seeded instants: nothing lost, nothing doubled."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curator.corpus.manifest import corpus_names, read_corpus
from curator.store.store import Store

N_ROWS = 20

# Runs the real ingest, and kills its own process before or after the n-th file is renamed into place.
KILLER = """
import os, signal, sys
from pathlib import Path
from curator.corpus import ingest
from curator.store.store import Store
ingest.PART_ROWS = 5
root, path, when, n = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
store = Store(root).open()
replace, count = Path.replace, 0
def dying(self, target):
    global count
    count += 1
    if count == n and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = replace(self, target)
    if count == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
Path.replace = dying
ingest.ingest(store, [path], "c")
"""


def _chats(path: Path, n_rows: int, width: int = 1) -> list[str]:
    texts = [f"answer {n} " * width for n in range(n_rows)]
    records = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": t}]} for t in texts]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, *records[:3], {}]))
    return texts


def _check_whole(root: Path, texts: list[str]) -> None:
    """Exactly the file's rows, each once and in order, and no file that the manifest does not name."""
    store = Store(root).open(create=False)
    info = read_corpus(store, "c")
    found = [
        json.loads(text)[-1]["content"]
        for part in info.parts
        for text in store.read_table(part)["messages"].to_pylist()
    ]
    assert found == texts
    (entry,) = info.ingests
    assert (entry["kept"], entry["folded"], entry["rejected"]) == (len(texts), 3, 1)
    named = {item["name"] for kind in ("parts", "sources", "rejects") for item in entry[kind]}
    folder = root / "corpora" / "c"
    assert {path.name for path in folder.iterdir()} == named | {"corpus.json", ".lock"}


def _ingest(root: Path, path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "curator", "ingest", str(path), "--corpus", "c", "--store", str(root)],
        check=True,
        capture_output=True,
        timeout=60,
    )


# 4 parts, 5 source files (23 kept records) and 1 file of rejects, then the manifest: 11 renames.
@pytest.mark.parametrize(("when", "n"), [("before", 1), ("after", 1), ("after", 5), ("before", 11), ("after", 11)])
def test_killed_around_a_rename(tmp_path: Path, when: str, n: int) -> None:
    texts = _chats(tmp_path / "chats.jsonl", N_ROWS)
    root, path = tmp_path / "store", tmp_path / "chats.jsonl"
    Store(root).open()
    killed = subprocess.run([sys.executable, "-c", KILLER, str(root), str(path), when, str(n)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    committed = (when, n) == ("after", 11)
    assert corpus_names(Store(root)) == (["c"] if committed else [])
    _ingest(root, path)
    _check_whole(root, texts)


def test_killed_at_seeded_instants(tmp_path: Path) -> None:
    root, path = tmp_path / "store", tmp_path / "chats.jsonl"
    texts = _chats(path, 12_000, width=20)
    instants = random.Random(11)
    n_killed = 0
    for _ in range(3):
        command = [sys.executable, "-m", "curator", "ingest", str(path), "--corpus", "c", "--store", str(root)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not list(root.glob("corpora/c/part-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(instants.uniform(0.0, 0.2))
        process.kill()
        n_killed += process.wait() == -signal.SIGKILL
    assert n_killed > 0
    _ingest(root, path)
    _check_whole(root, texts)
