"""What a dry run says, and that it stores nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.render import Rendered, Renderer
from curator.scoring import RowLoss, ScoreRequest, score_corpus
from curator.scoring.estimate import estimate
from curator.scoring.run import ScoreRun
from curator.store.store import Store
from tests.models import tiny_model_folder
from tests.toy_scoring import chat_file


class Clock:
    """Seconds that pass only while the engine works: 100 tokens each."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed:
    name, version, dtype = "torch", "test", "float32"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def score(self, rows: list[Rendered], on_rows: object = None) -> list[RowLoss]:
        self.clock.now += sum(row.n_tokens for row in rows) / 100
        if on_rows is not None:
            on_rows(len(rows), sum(row.n_tokens for row in rows))  # type: ignore[operator]
        return [RowLoss(1.0, int(row.response_mask[1:].sum())) for row in rows]

    def use_adapter(self, path: Path | None) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store").open()
    ingest(store, [chat_file(tmp_path / "chats.jsonl", 50, 3)], "chats")
    before = sorted(tmp_path.glob("store/**/*"))
    yield store
    if not store.exists("scores"):
        assert sorted(tmp_path.glob("store/**/*")) == before


def test_tokens_are_counted_and_hours_follow_from_the_measured_rate(store: Store, model: Path) -> None:
    clock = Clock()
    request = ScoreRequest("chats", model, "aligned", engine_version="test", max_length=120, price_per_hour=7.2)
    renderer = Renderer.from_folder(model)
    found = estimate(ScoreRun(store, request, renderer, lambda: Timed(clock)), passes=3, clock=clock)
    assert found.tokens_per_s == pytest.approx(100)
    assert found.exact
    report = score_corpus(store, replace(request, check_rows=0), renderer, lambda: Timed(clock))
    assert found.n_tokens == report.n_tokens_now
    assert found.n_rows_to_score == report.status_counts["scored"] < found.n_rows == 50
    assert found.hours == pytest.approx(3 * (found.n_tokens + found.n_tokens_checked) / 100 / 3600)
    assert found.price == pytest.approx(found.hours * 7.2)
    again = estimate(ScoreRun(store, request, renderer, lambda: Timed(clock)), clock=clock)
    assert (again.n_rows, again.n_tokens, again.tokens_per_s, again.hours) == (0, 0, None, None)


def test_the_command_prints_the_estimate(
    store: Store, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--model", str(model), "--role", "aligned",
        "--device", "cpu", "--dtype", "float32", "--threads", "1", "--sample", "12", "--sample-fit", "--passes", "4",
        "--price-per-hour", "3",
    ]  # fmt: skip
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "12 rows without a loss, 12 of them can be scored" in out
    assert "passes: 4" in out
    assert "tokens/s (measured for" in out
    assert "at 3 an hour" in out
    assert main(command) == 2
    assert "--passes needs --dry-run" in capsys.readouterr().err
