"""Scoring a corpus into parts: samples, resume, repair, statuses; the command around it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.errors import (
    BadInputError,
    MissingError,
    ScoringError,
    StoreError,
)
from curator.messages import load_messages
from curator.render import Rendered, Renderer
from curator.scoring import (
    RowLoss,
    Sample,
    ScoreRequest,
    score_corpus,
)
from curator.scoring.engines.batching import plan_batches
from curator.scoring.parts import ScoreRow, render_row, scored_row, write_part
from curator.scoring.request import choose, covers
from curator.store.store import Store
from tests.models import tiny_adapter_folder, tiny_model_folder
from tests.toy_scoring import chat_file

WINDOW = 120


class CountingEngine:
    """A closed-form engine (token id sum): the book-keeping is under test here, and real models next door."""

    name, version, dtype = "torch", "test", "float32"

    def __init__(self, fail_after: int | None = None, nan: bool = False) -> None:
        self.n_rows, self.fail_after, self.nan = 0, fail_after, nan

    def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
        if self.fail_after is not None and self.n_rows >= self.fail_after:
            raise ScoringError("fails on purpose")
        self.n_rows += len(rows)
        return [
            RowLoss(float("nan") if self.nan else closed_form(row), int(row.response_mask[1:].sum())) for row in rows
        ]

    def use_adapter(self, path: Path | None) -> None:
        pass

    def close(self) -> None:
        pass


def closed_form(row: Rendered) -> float:
    return float(row.input_ids[row.response_mask].sum()) / 1000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def renderer(model: Path) -> Renderer:
    return Renderer.from_folder(model)


def add_rows(store: Store, tmp_path: Path, n: int, seed: int) -> None:
    ingest(store, [chat_file(tmp_path / f"chats{seed}.jsonl", n, seed)], "chats")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    add_rows(store, tmp_path, 60, 1)
    return store


@pytest.fixture
def request_(model: Path) -> ScoreRequest:
    return ScoreRequest(
        "chats", model, "aligned", engine_version="test", max_length=WINDOW, block_tokens=600, check_rows=0
    )


def stored(store: Store, scorer_id: str) -> dict[str, dict[str, object]]:
    """Every row that the manifest's parts hold, by id; fails on a row that stands twice."""
    folder = f"scores/chats/{scorer_id}"
    rows: dict[str, dict[str, object]] = {}
    for part in store.read_json(f"{folder}/scorer.json")["parts"]:
        for row in store.read_table(f"{folder}/{part['name']}").to_pylist():
            assert row["example_id"] not in rows
            rows[row["example_id"]] = row
    return rows


def corpus_rows(store: Store) -> dict[str, str]:
    found = {}
    for name in store.list("corpora/chats", "part-*.parquet"):
        for row in store.read_table(f"corpora/chats/{name}").to_pylist():
            found[row["example_id"]] = row["messages"]
    return found


def test_every_row_gets_a_loss_or_a_reason(store: Store, request_: ScoreRequest, renderer: Renderer) -> None:
    engine = CountingEngine()
    report = score_corpus(store, request_, renderer, lambda: engine)
    rows, texts = stored(store, report.scorer_id), corpus_rows(store)
    assert rows.keys() == texts.keys()
    assert {"scored", "too_long"} == {row["status"] for row in rows.values()}
    for example_id, row in rows.items():
        rendered = renderer.render(load_messages(texts[example_id]))
        assert row["n_tokens"] == rendered.n_tokens
        assert row["n_response_tokens"] == rendered.n_response_tokens
        if rendered.n_tokens > WINDOW:
            assert (row["status"], row["nll_sum"]) == ("too_long", None)
            assert row["reason"] == f"{rendered.n_tokens} tokens, the window is {WINDOW}"
        else:
            assert (row["status"], row["reason"]) == ("scored", None)
            assert row["nll_sum"] == pytest.approx(closed_form(rendered))
    assert engine.n_rows == report.status_counts["scored"]
    manifest = store.read_json(f"scores/chats/{report.scorer_id}/scorer.json")
    assert manifest["complete"] is True
    assert len(manifest["parts"]) > 5
    assert sum(part["n_rows"] for part in manifest["parts"]) == manifest["n_rows"] == len(texts)
    assert Renderer.from_store(store, manifest["renderer_id"]).renderer_id == renderer.renderer_id


def test_a_finished_scorer_is_skipped_and_new_rows_alone_are_scored(
    store: Store, tmp_path: Path, request_: ScoreRequest, renderer: Renderer
) -> None:
    first = score_corpus(store, request_, renderer, CountingEngine)

    def never() -> CountingEngine:
        raise AssertionError("the model was loaded for nothing")

    again = score_corpus(store, request_, renderer, never)
    assert again.skipped
    assert again.status_counts == first.status_counts
    add_rows(store, tmp_path, 15, 2)
    engine = CountingEngine()
    more = score_corpus(store, request_, renderer, lambda: engine)
    assert more.n_rows == len(corpus_rows(store)) == first.n_rows + more.n_rows_now
    assert more.n_rows_now < first.n_rows
    assert stored(store, more.scorer_id).keys() == corpus_rows(store).keys()


def test_a_failed_run_keeps_its_parts_and_the_next_goes_on(
    store: Store, request_: ScoreRequest, renderer: Renderer
) -> None:
    failing = CountingEngine(fail_after=15)
    with pytest.raises(ScoringError, match="fails on purpose"):
        score_corpus(store, request_, renderer, lambda: failing)
    folder = f"scores/chats/{store.list('scores/chats')[0]}"
    assert not store.exists(f"{folder}/scorer.json")
    parts = store.list(folder, "part-*.parquet")
    before = {name: store.sha256(f"{folder}/{name}") for name in parts}
    engine = CountingEngine()
    report = score_corpus(store, request_, renderer, lambda: engine)
    assert parts
    assert engine.n_rows + failing.n_rows == report.status_counts["scored"]
    assert {name: store.sha256(f"{folder}/{name}") for name in parts} == before
    assert stored(store, report.scorer_id).keys() == corpus_rows(store).keys()


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "foreign columns", "rows of another part"])
def test_a_broken_part_is_set_aside_and_scored_again(
    store: Store, request_: ScoreRequest, renderer: Renderer, damage: str
) -> None:
    first = score_corpus(store, request_, renderer, CountingEngine)
    good = stored(store, first.scorer_id)
    folder = f"scores/chats/{first.scorer_id}"
    name, other = store.list(folder, "part-*.parquet")[1:3]
    data = store.read_bytes(f"{folder}/{name}")
    if damage == "truncated":
        store.write_bytes(f"{folder}/{name}", data[: len(data) // 2])
    elif damage == "other bytes":
        store.write_bytes(f"{folder}/{name}", store.read_bytes(f"{folder}/{other}"))
    elif damage == "foreign columns":
        corpus_part = store.list("corpora/chats", "part-*.parquet")[0]
        store.write_bytes(f"{folder}/{name}", store.read_bytes(f"corpora/chats/{corpus_part}"))
    else:
        store.write_bytes(f"{folder}/part-zzz.parquet", data)
    store.delete(f"{folder}/scorer.json")
    report = score_corpus(store, request_, renderer, CountingEngine)
    assert any("set aside and scored again" in warning for warning in report.warnings)
    assert stored(store, report.scorer_id) == good
    assert len(store.list(folder, "*.set-aside")) == 1


def test_a_published_part_whose_bytes_changed_is_scored_again(
    store: Store, request_: ScoreRequest, renderer: Renderer
) -> None:
    first = score_corpus(store, request_, renderer, CountingEngine)
    good, folder = stored(store, first.scorer_id), f"scores/chats/{first.scorer_id}"
    path = f"{folder}/{store.list(folder, 'part-*.parquet')[1]}"
    data = bytearray(store.read_bytes(path))
    data[len(data) // 3] ^= 0xFF
    store.write_bytes(path, bytes(data))
    report = score_corpus(store, request_, renderer, CountingEngine)
    assert not report.skipped
    assert stored(store, report.scorer_id) == good
    assert score_corpus(store, request_, renderer, CountingEngine).skipped


def test_a_part_that_cannot_be_fetched_ends_the_run_and_stays(
    store: Store, request_: ScoreRequest, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score_corpus(store, request_, renderer, CountingEngine)
    folder = f"scores/chats/{first.scorer_id}"
    parts = store.list(folder, "part-*.parquet")
    store.delete(f"{folder}/scorer.json")
    read = Store.read_table

    def lost(self: Store, path: str, columns: Any = None) -> pa.Table:
        if path.endswith(parts[1]):
            raise StoreError(f"cannot read {path}: the request was lost")
        return read(self, path, columns)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read_table", lost)
        with pytest.raises(StoreError, match="the request was lost"):
            score_corpus(store, request_, renderer, CountingEngine)
    assert store.list(folder, "part-*.parquet") == parts
    report = score_corpus(store, request_, renderer, CountingEngine)
    assert report.n_rows_now == 0
    assert not report.warnings


def test_parts_of_workers_with_different_samples_never_double_a_row(
    store: Store, request_: ScoreRequest, renderer: Renderer
) -> None:
    first = score_corpus(store, request_, renderer, CountingEngine)
    good = stored(store, first.scorer_id)
    rows = [ScoreRow(**good[example_id]) for example_id in list(good)[5:25:3]]  # type: ignore[arg-type]
    write_part(store, f"scores/chats/{first.scorer_id}", rows)
    store.delete(f"scores/chats/{first.scorer_id}/scorer.json")
    report = score_corpus(store, request_, renderer, CountingEngine)
    assert stored(store, report.scorer_id) == good
    assert any("stand in another part too" in warning for warning in report.warnings)


def test_a_row_without_a_response_or_a_loss_is_null_with_a_reason(renderer: Renderer) -> None:
    question = '[{"role":"user","content":"hello"}]'
    silent = render_row(renderer, "id", question, "all", WINDOW)
    assert silent == ("id", "no_response", None, 0, renderer.render(load_messages(question)).n_tokens,
                      "no response token to score")  # fmt: skip
    failed = render_row(renderer, "id", '[{"role":"nobody","content":"hello"}]', "all", WINDOW)
    assert failed[:5] == ("id", "failed", None, None, None)
    assert "nobody" in str(failed[5])
    row = Rendered(np.array([1, 2, 3], dtype=np.int32), np.array([False, True, True]))
    assert scored_row("id", row, RowLoss(float("inf"), 2))[1:3] == ("failed", None)
    nan = scored_row("id", row, RowLoss(float("nan"), 2))
    assert (nan.status, nan.nll_sum, nan.reason) == ("failed", None, "the model's loss is nan")


def test_a_model_that_gives_no_row_a_loss_does_not_become_a_scorer(
    store: Store, request_: ScoreRequest, renderer: Renderer
) -> None:
    for _ in range(2):  # what was written does not make it complete
        with pytest.raises(BadInputError, match=r"none of the 60 rows .* first: .*: the model's loss is nan"):
            score_corpus(store, request_, renderer, lambda: CountingEngine(nan=True))
    assert store.list("scores/chats/*", "scorer.json") == []


def test_a_larger_sample_contains_the_smaller_and_only_adds(
    store: Store, request_: ScoreRequest, renderer: Renderer
) -> None:
    seen: list[set[str]] = []
    for n, fit in ((5, True), (12, True), (12, False)):
        engine = CountingEngine()
        report = score_corpus(store, replace(request_, sample=Sample(n, 7, fit)), renderer, lambda e=engine: e)
        seen.append(set(stored(store, report.scorer_id)))
        assert engine.n_rows <= 12
    assert seen[0] < seen[1] <= seen[2]
    assert len(seen[0]) == 5
    assert len(seen[1]) == 12
    assert {row["status"] for key, row in stored(store, report.scorer_id).items() if key in seen[1]} == {"scored"}
    whole = score_corpus(store, request_, renderer, CountingEngine)
    assert stored(store, whole.scorer_id).keys() == corpus_rows(store).keys()
    smaller = score_corpus(store, replace(request_, sample=Sample(3, 99)), renderer, CountingEngine)
    assert smaller.skipped
    assert store.read_json(f"scores/chats/{whole.scorer_id}/scorer.json")["sample"] is None


def test_a_sample_larger_than_what_fits_says_so(store: Store, request_: ScoreRequest, renderer: Renderer) -> None:
    report = score_corpus(store, replace(request_, sample=Sample(1000, 0, True)), renderer, CountingEngine)
    assert set(report.status_counts) == {"scored"}
    assert any("1000 rows asked" in warning for warning in report.warnings)


@settings(deadline=None)
@given(st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=1), st.data())
def test_samples_nest_and_ignore_the_order_of_rows(ids: set[str], data: st.DataObject) -> None:
    small, large = sorted(data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40))))
    seed = data.draw(st.integers(0, 3))
    fitting = data.draw(st.sets(st.sampled_from(sorted(ids))))
    for fit in (False, True):
        chosen = [
            choose(order, Sample(n, seed, fit), lambda asked: [item for item in asked if item in fitting])
            for n, order in ((small, sorted(ids)), (large, sorted(ids, reverse=True)))
        ]
        assert chosen[1][: len(chosen[0])] == chosen[0]
        assert len(chosen[1]) == min(large, len(fitting if fit else ids))
        assert not fit or fitting.issuperset(chosen[1])


def test_what_a_finished_sample_covers() -> None:
    done = Sample(10, 1).document()
    assert covers(None, Sample(5))
    assert covers(None, None)
    assert covers(done, Sample(10, 1))
    assert not covers(done, None)
    assert not covers(done, Sample(11, 1))
    assert not covers(done, Sample(5, 2))
    assert not covers(done, Sample(5, 1, fit=True))


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 1000))
def test_batches_hold_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_bad_requests_are_refused(store: Store, request_: ScoreRequest, renderer: Renderer) -> None:
    with pytest.raises(BadInputError, match="needs a domain"):
        replace(request_, role="misaligned")
    with pytest.raises(BadInputError, match="takes no domain"):
        replace(request_, domain="finance")
    with pytest.raises(MissingError, match="no corpus 'other'"):
        score_corpus(store, replace(request_, corpus="other"), renderer, CountingEngine)
    score_corpus(store, request_, renderer, CountingEngine)
    with pytest.raises(BadInputError, match="One scorer has one role"):
        score_corpus(store, replace(request_, role="benign", domain="x"), renderer, CountingEngine)
    with pytest.raises(BadInputError, match="at least 1"):
        Sample(0)


def test_the_models_own_window_binds(store: Store, request_: ScoreRequest, renderer: Renderer) -> None:
    report = score_corpus(store, replace(request_, max_length=5000), renderer, CountingEngine)
    assert report.max_length == 1024
    assert any("lowered to 1024" in warning for warning in report.warnings)


def test_the_command_scores_base_and_adapter_and_refuses_bad_input(
    store: Store, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tiny_adapter_folder(model, tmp_path / "adapter")
    common = ["score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--model", str(model)]
    small = [
        "--check-rows",
        "3",
        "--sample",
        "6",
        "--sample-fit",
        "--dtype",
        "float32",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--json",
    ]
    reports = []
    for role in (["--role", "aligned"], ["--role", "misaligned", "--domain", "x", "--adapter", str(adapter)]):
        assert main([*common, *role, *small]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["measure_id"] == reports[1]["measure_id"]
    assert reports[0]["scorer_id"] != reports[1]["scorer_id"]
    losses = [stored(store, report["scorer_id"]) for report in reports]
    assert losses[0].keys() == losses[1].keys()
    assert all(abs(losses[0][key]["nll_sum"] - losses[1][key]["nll_sum"]) > 1e-3 for key in losses[0])
    assert main([*common, "--role", "aligned", *small[:-1]]) == 0
    assert "complete before" in capsys.readouterr().out
    for wrong, message in (
        (["--role", "misaligned"], "--role misaligned needs --domain"),
        (["--role", "aligned", "--sample", "0"], "--sample 0: give at least 1"),
        (["--role", "aligned", "--sample-fit"], "--sample-fit needs --sample"),
        (["--role", "aligned", "--model", str(tmp_path / "none")], "does not exist"),
        (["--role", "aligned", "--model", str(adapter)], "lacks config.json, tokenizer.json"),
        (["--role", "aligned", "--adapter", str(model)], "lacks adapter_config.json"),
        (["--role", "aligned", "--corpus", "other"], "no corpus 'other'"),
    ):
        assert main([*common, *wrong]) == 2
        assert message in capsys.readouterr().err
