"""Rows scored again: what is compared, what it costs, and that a wrong engine cannot finish a run."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.errors import ScoringError
from curator.render import Rendered, Renderer
from curator.scoring import RowLoss, ScoreRequest, score_corpus
from curator.scoring.check import n_check_rows, row_bound
from curator.scoring.worker import Meter
from curator.store.store import Store
from tests.models import tiny_adapter_folder, tiny_model_folder
from tests.toy_scoring import chat_file


def plain_loss(row: Rendered) -> RowLoss:
    return RowLoss(float(row.input_ids.sum()) / 100, int(row.response_mask[1:].sum()))


class Toy:
    """Right by default. `leak`: the second row of each call gets 0.01 nats more, as when rows see one another."""

    name, version, dtype = "torch", "test", "float32"

    def __init__(self, leak: float = 0.0, off: float = 0.0) -> None:
        self.leak, self.off, self.n_rows = leak, off, 0

    def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
        self.n_rows += len(rows)
        losses = [plain_loss(row) for row in rows]
        return [
            RowLoss(loss.nll_sum + self.off * loss.n_response_tokens + (self.leak if i == 1 else 0.0),
                    loss.n_response_tokens)
            for i, loss in enumerate(losses)
        ]  # fmt: skip

    def use_adapter(self, path: Path | None) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny")


def add_rows(store: Store, tmp_path: Path, n: int, seed: int) -> None:
    ingest(store, [chat_file(tmp_path / f"chats{seed}.jsonl", n, seed)], "chats")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    add_rows(store, tmp_path, 40, 1)
    return store


@pytest.fixture
def request_(model: Path) -> ScoreRequest:
    return ScoreRequest("chats", model, "aligned", engine_version="test", max_length=300, block_tokens=2000)


def manifest(store: Store, scorer_id: str) -> dict:
    return store.read_json(f"scores/chats/{scorer_id}/scorer.json")


def test_each_run_checks_its_new_rows_and_keeps_both_differences(
    store: Store, tmp_path: Path, model: Path, request_: ScoreRequest
) -> None:
    renderer = Renderer.from_folder(model)
    engine, reference = Toy(), Toy(off=5e-5)
    report = score_corpus(store, request_, renderer, lambda: engine, lambda: reference)
    assert (engine.n_rows, reference.n_rows) == (report.n_rows + 20, 20)
    add_rows(store, tmp_path, 5, 2)
    report = score_corpus(store, request_, renderer, Toy)
    first, second = manifest(store, report.scorer_id)["checks"]
    assert (first["n_new_rows"], first["n_rows"], first["reason"]) == (40, 20, None)
    assert first["permuted"]["max_abs"] == 0.0
    assert first["reference"]["max_abs"] == pytest.approx(5e-5)
    assert (second["n_new_rows"], second["n_rows"], second["reference"]) == (5, 5, None)
    assert second["reason"] == "the weights are not on this machine"


def test_none_is_recorded_as_none(store: Store, model: Path, request_: ScoreRequest) -> None:
    report = score_corpus(store, replace(request_, check_rows=0), Renderer.from_folder(model), Toy)
    (check,) = manifest(store, report.scorer_id)["checks"]
    assert (check["n_rows"], check["reason"]) == (0, "not requested")


def test_losses_that_depend_on_the_company_end_the_run(store: Store, model: Path, request_: ScoreRequest) -> None:
    renderer = Renderer.from_folder(model)
    with pytest.raises(
        ScoringError, match=r"checked rows differ when scored again in another order .* worst first: "
    ) as e:
        score_corpus(store, request_, renderer, lambda: Toy(leak=1.0))
    worst = e.value.details[0]
    assert abs(worst["stored"] - worst["again"]) == pytest.approx(1.0 / worst["n_response_tokens"])
    (scorer,) = store.list("scores/chats")
    assert not store.exists(f"scores/chats/{scorer}/scorer.json")
    # What was scored wrongly stays unlisted, and a right engine finds it out too.
    with pytest.raises(ScoringError, match=f"delete scores/chats/{scorer} to score again"):
        score_corpus(store, replace(request_, check_rows=100), renderer, Toy)


def test_an_engine_that_is_wrong_throughout_fails_against_the_reference(
    store: Store, model: Path, request_: ScoreRequest
) -> None:
    reference = Toy()
    reference.name = "plain"  # type: ignore[misc]
    with pytest.raises(ScoringError, match=r"20 of 20 checked rows differ from plain by more than 0.0001"):
        score_corpus(store, request_, Renderer.from_folder(model), lambda: Toy(off=2e-4), lambda: reference)


def test_the_command_checks_an_adapter_pass_against_plain_torch(
    store: Store, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tiny_adapter_folder(model, tmp_path / "adapter")
    command = [
        "score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--model", str(model), "--adapter",
        str(adapter), "--role", "misaligned", "--domain", "x", "--dtype", "float32", "--device", "cpu",
        "--threads", "1", "--sample", "12", "--sample-fit", "--check-rows", "6",
    ]  # fmt: skip
    assert main([*command, "--json"]) == 0
    check = json.loads(capsys.readouterr().out)["check"]
    assert check["n_rows"] == 6
    assert 0 <= check["reference"]["max_abs"] < 1e-4  # exactly 0 on some processors
    assert check["permuted"]["max_abs"] < 1e-4
    assert "row by row, float32 on cpu" in check["reference"]["name"]
    assert main([*command[:-1], "-1"]) == 2
    assert "--check-rows -1: give 0 for none" in capsys.readouterr().err
    assert main([*command, "--price-per-hour", "-3"]) == 2
    assert "not negative" in capsys.readouterr().err


def test_how_many_rows_and_how_close() -> None:
    assert [n_check_rows(None, n) for n in (0, 7, 500, 10_000)] == [0, 7, 20, 100]
    assert [n_check_rows(asked, 50) for asked in (0, 3, 90)] == [0, 3, 50]
    assert row_bound("float32", 1) == row_bound("float32", 900) == 1e-4
    assert row_bound("bfloat16", 32) == row_bound("bfloat16", 900) == 0.03
    assert row_bound("bfloat16", 8) == pytest.approx(0.12)
    assert row_bound("bfloat16", 2) == 0.2


def test_the_meter_shows_tokens_their_rate_and_the_cost() -> None:
    now = [0.0]
    meter = Meter(price_per_hour=36.0, clock=lambda: now[0])
    now[0] = 10.0
    meter.rows(3, 5_000)
    assert meter.fields() == {"tokens": "5,000", "tokens_per_s": "500", "cost": "0.10"}
