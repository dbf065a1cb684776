"""SIGKILL while scoring, at seeded moments and at the worst ones: nothing lost, doubled or done again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curator.corpus.ingest import ingest
from curator.store.store import Store
from tests.models import random_conversations, tiny_model_folder

ROOT = Path(__file__).parents[2]
# "WHEN:SUFFIX:COUNT" in DIE kills the process before or after the COUNT-th atomic rename onto such a name.
DYING = """
import json, os, signal, sys
from pathlib import Path

when, suffix, count = (os.environ.get("DIE") or "never::0").split(":")
seen = 0
replace = Path.replace

def dying(self, target):
    global seen
    hit = when != "never" and Path(target).name.endswith(suffix) and "scores" in str(target)
    seen += hit
    if hit and seen == int(count) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = replace(self, target)
    if hit and seen == int(count) and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

Path.replace = dying
"""
# The command as a user runs it, with a real model and small parts.
COMMAND = """
from curator import __main__
from curator.cli import score

score.BLOCK_TOKENS = {"cpu": 250}
sys.exit(__main__.main([
    "score", "--store", sys.argv[1], "--model", sys.argv[2], "--corpus", "chats", "--role", "aligned", "--json",
    "--max-length", "120", "--dtype", "float32", "--device", "cpu", "--threads", "1",
]))
"""
# The same book-keeping around a closed-form engine: starts in a second, so the exact instants are always tested.
CLOSED_FORM = """
from curator.render import Renderer
from curator.scoring import RowLoss, ScoreRequest, score_corpus
from curator.store.store import Store

class Engine:
    name, version, dtype = "torch", "test", "float32"
    def score(self, rows, on_rows=None):
        return [RowLoss(float(row.input_ids.sum()), int(row.response_mask[1:].sum())) for row in rows]
    def use_adapter(self, path): pass
    def close(self): pass

model = Path(sys.argv[2])
request = ScoreRequest("chats", model, "aligned", engine_version="test", max_length=120, block_tokens=250)
report = score_corpus(Store(sys.argv[1]).open(), request, Renderer.from_folder(model), Engine)
print(json.dumps(report.document()))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    file = tmp_path / "chats.jsonl"
    rows = [json.dumps({"messages": messages}) for messages in random_conversations(80, seed=4)]
    file.write_text("\n".join(rows) + "\n")
    ingest(store, [file], "chats")
    return store


def start(store: Store, model: Path, program: str, die: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DYING + program, str(store.local_path(".")), str(model)]
    environment = os.environ | {"DIE": die, "PYTHONPATH": str(ROOT), "BALLAST_PROGRESS": "0", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(store: Store, model: Path, program: str) -> dict[str, object]:
    process = start(store, model, program)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    report: dict[str, object] = json.loads(out)
    return report


def parts(store: Store) -> dict[str, tuple[str, int]]:
    """Hash and inode of every part there is: a part written again has another inode."""
    found = {}
    for scorer in store.list("scores/chats"):
        for name in store.list(f"scores/chats/{scorer}", "part-*.parquet"):
            path = f"scores/chats/{scorer}/{name}"
            local = store.local_path(path)
            assert local is not None
            found[name] = (store.sha256(path), local.stat().st_ino)
    return found


def losses(store: Store, scorer_id: object) -> dict[str, object]:
    """Loss by id over the manifest's parts; fails on a row that stands twice."""
    folder = f"scores/chats/{scorer_id}"
    found: dict[str, object] = {}
    for part in store.read_json(f"{folder}/scorer.json")["parts"]:
        for row in store.read_table(f"{folder}/{part['name']}").to_pylist():
            assert row["example_id"] not in found
            found[row["example_id"]] = (row["status"], row["nll_sum"], row["n_response_tokens"])
    return found


def corpus_ids(store: Store) -> set[str]:
    names = store.list("corpora/chats", "part-*.parquet")
    return {
        example_id
        for name in names
        for example_id in store.read_table(f"corpora/chats/{name}")["example_id"].to_pylist()
    }


def check_restart(store: Store, model: Path, program: str, before: dict[str, tuple[str, int]]) -> None:
    report = finish(store, model, program)
    after = parts(store)
    assert {name: after[name] for name in before} == before  # finished parts were not touched
    found = losses(store, report["scorer_id"])
    assert found.keys() == corpus_ids(store)
    assert report["n_rows_now"] == len(found) - sum(
        store.read_table(f"scores/chats/{report['scorer_id']}/{name}").num_rows for name in before
    )


@pytest.mark.parametrize(
    "die", ["before:.parquet:3", "after:.parquet:3", "before:scorer.json:1", "after:scorer.json:1"]
)
def test_killed_around_a_rename(store: Store, model: Path, die: str) -> None:
    process = start(store, model, CLOSED_FORM, die)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    before = parts(store)
    if ".parquet" in die:
        assert len(before) == (2 if die.startswith("before") else 3)
    else:
        assert len(before) > 5
    check_restart(store, model, CLOSED_FORM, before)


@pytest.mark.slow
def test_killed_at_seeded_moments_again_and_again(store: Store, model: Path) -> None:
    rng = random.Random(20)
    before: dict[str, tuple[str, int]] = {}
    for _ in range(3):
        process = start(store, model, COMMAND)
        deadline = time.monotonic() + 60
        while len(parts(store)) == len(before) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)  # the kill falls after the first new part, at a random instant of the rest
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        now = parts(store)
        assert {name: now[name] for name in before} == before
        before = now
    check_restart(store, model, COMMAND, before)
