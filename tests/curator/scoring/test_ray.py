"""Scoring with Ray actors for real: the same parts as without, and a worker that is killed costs nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from curator.corpus.ingest import ingest
from curator.errors import ScoringError
from curator.render import Renderer
from curator.scoring import ScoreRequest, score_corpus
from curator.scoring.engines.base import Engine
from curator.scoring.engines.launch import torch_launch
from curator.scoring.faults import FOLDER
from curator.scoring.ray_workers import RayPlan, RayWorkers
from curator.scoring.run import WorkersFactory
from curator.store.store import Store
from tests.models import tiny_model_folder
from tests.toy_scoring import (
    ToyEngine,
    chat_file,
    corpus_ids,
    losses,
    toy_model_folder,
    toy_score,
)

# Ray's own worker start-up warns about what is not ours.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]
BLOCK_TOKENS = 600


@pytest.fixture(autouse=True)
def _own_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import these tests' modules from here, and no cluster of the machine's is used."""
    root = str(Path(__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@dataclass(frozen=True)
class ToyLaunch:
    """A toy engine whose every call takes a while, or kills its process."""

    seconds: float = 0.0
    deadly: bool = False

    def __call__(self) -> Engine:
        return _Slow(self)


class _Slow(ToyEngine):
    def __init__(self, launch: ToyLaunch) -> None:
        super().__init__()
        self._launch = launch

    def score(self, rows, on_rows=None):  # type: ignore[no-untyped-def]
        if self._launch.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._launch.seconds)
        return super().score(rows, on_rows)


def ray_workers(model: Path, launch: Callable[[], Engine], workers: int = 2) -> WorkersFactory:
    return lambda worker: RayWorkers(RayPlan(workers), worker, model, launch)


def request(model: Path, **options: object) -> ScoreRequest:
    settings = {"engine": "toy", "engine_version": "1", "max_length": 120, "block_tokens": BLOCK_TOKENS, **options}
    return ScoreRequest("chats", model, "aligned", label="base", **settings)  # type: ignore[arg-type]


def corpus(tmp_path: Path, name: str, n: int) -> Store:
    store = Store(tmp_path / name).open()
    ingest(store, [chat_file(tmp_path / f"{name}.jsonl", n)], "chats")
    return store


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith("ray::_Worker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_torch_workers_write_the_parts_of_a_run_without_ray(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "tiny")
    launch = torch_launch(model, "cpu", "float32", threads=1)
    asked = request(model, engine="torch", engine_version=launch.version, check_rows=20)
    renderer = Renderer.from_folder(model)
    alone, together = corpus(tmp_path, "alone", 60), corpus(tmp_path, "together", 60)
    one = score_corpus(alone, asked, renderer, launch)
    other = score_corpus(together, asked, renderer, launch, workers_factory=ray_workers(model, launch))
    assert one.scorer_id == other.scorer_id
    folder = f"scores/chats/{one.scorer_id}"
    assert alone.list(folder, "part-*") == together.list(folder, "part-*")
    assert len(alone.list(folder, "part-*")) > 4
    assert other.n_rows_now == one.n_rows_now == 60
    assert other.n_tokens_now == one.n_tokens_now
    expected = losses(alone, one.scorer_id)
    for key, (status, loss) in losses(together, one.scorer_id).items():
        assert status == expected[key][0]
        assert loss == (None if expected[key][1] is None else pytest.approx(expected[key][1], rel=1e-6))
    assert other.check is not None
    assert other.check["permuted"]["passed"]
    # Half of the parts are lost: a run without Ray goes on from what Ray left.
    for name in together.list(folder, "part-*")[::2]:
        together.delete(f"{folder}/{name}")
    together.delete(f"{folder}/scorer.json")
    again = score_corpus(together, asked, renderer, launch)
    assert 0 < again.n_rows_now < 60
    assert losses(together, one.scorer_id).keys() == expected.keys()


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    model, store = toy_model_folder(tmp_path / "toy"), corpus(tmp_path, "store", 80)
    killed: list[int] = []

    def kill_one_at_work() -> None:
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline and not killed:
            if store.exists("scores/chats") and list((tmp_path / "store" / "scores").rglob("part-*")):
                found = workers()
                if found:
                    found[0].kill()
                    killed.append(found[0].pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one_at_work)
    thread.start()
    report = score_corpus(
        store, request(model, check_rows=0), Renderer.from_folder(model), lambda: ToyEngine(),
        workers_factory=ray_workers(model, ToyLaunch(0.4)),
    )  # fmt: skip
    thread.join()
    assert killed
    assert not psutil.pid_exists(killed[0])
    assert losses(store, report.scorer_id).keys() == corpus_ids(store)
    assert not store.list(f"scores/chats/{report.scorer_id}/{FOLDER}")
    # The same losses as in one process.
    plain = corpus(tmp_path, "plain", 80)
    assert losses(store, report.scorer_id) == losses(
        plain, toy_score(plain, model, block_tokens=BLOCK_TOKENS).scorer_id
    )


def test_workers_that_always_die_end_the_run(tmp_path: Path) -> None:
    model, store = toy_model_folder(tmp_path / "toy"), corpus(tmp_path, "store", 30)
    with pytest.raises(ScoringError, match="workers died and no row was scored"):
        score_corpus(
            store, request(model, check_rows=0), Renderer.from_folder(model), lambda: ToyEngine(),
            workers_factory=ray_workers(model, ToyLaunch(deadly=True), workers=1),
        )  # fmt: skip
