"""Shards and plain processes side by side, killed at random moments: the parts and rows of a run left in peace."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from curator.corpus.ingest import ingest
from curator.corpus.manifest import read_corpus
from curator.scoring.shards import Shard, shard_ids
from curator.store.store import Store
from tests.toy_scoring import chat_file, corpus_ids, losses, toy_model_folder

ROOT = Path(__file__).parents[2]
N_SHARDS = 3
# The shards of a run, one after another in one process ("": all of it, without shards).
# Each call of the engine takes a while, so that kills fall into blocks.
PROGRAM = """
import json, sys, time
from pathlib import Path

from curator.render import Renderer
from curator.scoring import ScoreRequest, score_corpus
from curator.scoring.shards import Shard
from curator.store.store import Store
from tests.toy_scoring import ToyEngine

class Slow(ToyEngine):
    def score(self, rows, on_rows=None):
        time.sleep(float(sys.argv[4]))
        return super().score(rows, on_rows)

model = Path(sys.argv[2])
reports = []
for shard in sys.argv[3].split(","):
    request = ScoreRequest(
        "chats", model, "aligned", label="base", engine="toy", engine_version="1", max_length=120, block_tokens=250,
        shard=Shard.parse(shard) if shard else None,
    )
    reports.append(score_corpus(Store(sys.argv[1]).open(), request, Renderer.from_folder(model), Slow).document())
print(json.dumps(reports))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_model_folder(tmp_path / "toy")


def new_store(tmp_path: Path, name: str) -> Store:
    store = Store(tmp_path / name).open()
    ingest(store, [chat_file(tmp_path / f"{name}.jsonl", 120)], "chats")
    return store


def start(store: Store, model: Path, shard: str, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(store.local_path(".")), str(model), shard, str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BALLAST_PROGRESS": "0", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> list[dict[str, object]]:
    """The reports of its shards."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    reports: list[dict[str, object]] = json.loads(out)
    return reports


def parts(store: Store) -> dict[str, str]:
    """SHA-256 of every part by name."""
    (scorer,) = store.list("scores/chats") or [""]
    names = store.list(f"scores/chats/{scorer}", "part-*.parquet") if scorer else []
    return {name: store.sha256(f"scores/chats/{scorer}/{name}") for name in names}


def own_parts(done: Store, shards: Sequence[str]) -> list[set[str]]:
    """The names of each shard's parts, from a store where all are scored."""
    corpus, wanted = read_corpus(done, "chats"), corpus_ids(done)
    (scorer,) = done.list("scores/chats")
    first = {name: done.read_table(f"scores/chats/{scorer}/{name}")["example_id"][0].as_py() for name in parts(done)}
    ids = [shard_ids(done, corpus, wanted, 120, Shard.parse(shard)) for shard in shards]
    return [{name for name, example_id in first.items() if example_id in some} for some in ids]


def kill_after_some_parts(
    store: Store, processes: list[subprocess.Popen[bytes]], own: Sequence[set[str] | None], rng: random.Random
) -> None:
    """End each at a moment of its own after a new part of its own (None: of any) came, as a preempted job ends.

    So none dies twice over one row, which would be given up as one that kills its process.
    """
    before, deadline = parts(store).keys(), time.monotonic() + 60
    for process, names in zip(processes, own, strict=True):
        while process.poll() is None and time.monotonic() < deadline:
            new = parts(store).keys() - before
            if new if names is None else new & names:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()


@pytest.mark.parametrize("n_rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_shards_killed_at_random_and_started_again_give_the_same_parts(
    tmp_path: Path, model: Path, n_rounds: int
) -> None:
    shards = [f"{index}/{N_SHARDS}" for index in range(1, N_SHARDS + 1)]
    peace, killed = new_store(tmp_path, "peace"), new_store(tmp_path, "killed")
    reports = finish(start(peace, model, ",".join(shards), 0.0))
    assert [report["published"] for report in reports] == [False, False, True]
    rng, own = random.Random(7), own_parts(peace, shards)
    assert set().union(*own) == parts(peace).keys()
    for _ in range(n_rounds):
        before = parts(killed)
        kill_after_some_parts(killed, [start(killed, model, shard, 0.15) for shard in shards], own, rng)
        assert {name: parts(killed)[name] for name in before} == before
    last = [finish(process) for process in [start(killed, model, shard, 0.0) for shard in shards]]
    assert any(report["published"] for (report,) in last)
    assert parts(killed) == parts(peace)
    scorer = reports[0]["scorer_id"]
    assert losses(killed, str(scorer)) == losses(peace, str(scorer))
    assert losses(killed, str(scorer)).keys() == corpus_ids(killed)


def test_plain_processes_on_one_corpus_share_its_blocks(tmp_path: Path, model: Path) -> None:
    store, alone = new_store(tmp_path, "store"), new_store(tmp_path, "alone")
    (expected,) = finish(start(alone, model, "", 0.0))
    n_blocks, n_rows = len(parts(alone)), len(corpus_ids(alone))
    reports = [finish(process)[0] for process in [start(store, model, "", 0.3) for _ in range(2)]]
    assert parts(store) == parts(alone)
    assert losses(store, str(expected["scorer_id"])) == losses(alone, str(expected["scorer_id"]))
    # Without the notes each of them would score every row; a block or two at the end may be done by both.
    n_now = [int(str(report["n_rows_now"])) for report in reports]
    assert n_rows <= sum(n_now) <= n_rows + 4 * n_rows // n_blocks + 10
    assert min(n_now) > n_rows // 5


@pytest.mark.slow
def test_a_block_whose_process_was_killed_goes_to_the_other(tmp_path: Path, model: Path) -> None:
    store, rng = new_store(tmp_path, "store"), random.Random(3)
    victim, other = start(store, model, "", 0.3), start(store, model, "", 0.3)
    kill_after_some_parts(store, [victim], [None], rng)
    (report,) = finish(other)
    assert losses(store, str(report["scorer_id"])).keys() == corpus_ids(store)
    assert not store.list(f"scores/chats/{report['scorer_id']}/attempts")
