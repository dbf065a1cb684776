"""`--shard i/n`: shares that cover the corpus, and a scorer that is published when the last of them is done."""

import json
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.corpus.manifest import read_corpus
from curator.errors import BadInputError, ScoringError
from curator.render import Rendered, Renderer
from curator.scoring import RowLoss, ScoreReport, ScoreRequest, score_corpus
from curator.scoring.shards import FOLDER, Shard, deal
from curator.store.store import Store
from tests.models import tiny_model_folder
from tests.toy_scoring import ToyEngine, chat_file, corpus_ids, losses, toy_model_folder, toy_score

N_ROWS = 90


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_model_folder(tmp_path / "toy")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path, "store")


def new_store(tmp_path: Path, name: str) -> Store:
    store = Store(tmp_path / name).open()
    ingest(store, [chat_file(tmp_path / "chats.jsonl", N_ROWS)], "chats")
    return store


def score_shard(store: Store, model: Path, shard: str | None, engine: object = None) -> ScoreReport:
    request = ScoreRequest(
        "chats", model, "aligned", label="base", engine="toy", engine_version="1", max_length=120, block_tokens=300,
        shard=Shard.parse(shard) if shard else None,
    )  # fmt: skip
    return score_corpus(store, request, Renderer.from_folder(model), lambda: engine or ToyEngine())  # type: ignore[arg-type,return-value]


class Failing(ToyEngine):
    """Scores `n` calls, then fails."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
        self.left -= 1
        if self.left < 0:
            raise ScoringError("fails on purpose")
        return super().score(rows)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(20, 200))
@example(8, 46)  # as many runs as in a large corpus gave one shard a tenth of its share here
def test_shards_cover_each_row_once_and_have_like_numbers_of_tokens(count: int, window: int) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        store = new_store(Path(folder), "store")
        corpus = read_corpus(store, "chats")
        wanted = corpus_ids(store)
        dealt = list(deal(store, corpus, wanted, window, count))
        assert sorted(key for key, _ in dealt) == sorted(wanted)
        assert {index for _, index in dealt} <= set(range(1, count + 1))
        # Each row costs at most the window; a shard's runs begin and end inside of rows.
        rows = store.read_table(corpus.parts[0], ["example_id", "n_chars"]).to_pylist()
        tokens = {row["example_id"]: min(row["n_chars"] // 3 + 16, window) for row in rows}
        load = Counter[int]()
        for key, index in dealt:
            load[index] += tokens[key]
        share = sum(tokens.values()) / count
        assert all(abs(load[index] - share) < share / 2 + 3 * window for index in range(1, count + 1))


def test_shards_give_the_losses_of_one_run_and_the_last_publishes(tmp_path: Path, store: Store, model: Path) -> None:
    whole = new_store(tmp_path, "whole")
    expected = losses(whole, toy_score(whole, model).scorer_id)
    folder = ""
    for number, shard in enumerate(("2/3", "3/3", "1/3")):
        report = score_shard(store, model, shard)
        folder = f"scores/chats/{report.scorer_id}"
        assert report.shard == shard
        assert 0 < report.n_rows_now < N_ROWS
        assert report.published is (number == 2) is store.exists(f"{folder}/scorer.json")
        if number == 1:
            assert report.missing_shards == ["1/3"]
            assert report.n_missing == len(expected) - report.n_rows
    assert losses(store, report.scorer_id) == expected
    manifest = store.read_json(f"{folder}/scorer.json")
    assert [check["shard"] for check in manifest["checks"]] == ["1/3", "2/3", "3/3"]
    assert sum(check["n_new_rows"] for check in manifest["checks"]) == manifest["status_counts"]["scored"]
    assert all(check["permuted"]["passed"] for check in manifest["checks"])
    assert not store.list(f"{folder}/{FOLDER}")
    assert score_shard(store, model, "2/3", Failing(0)).skipped
    assert score_shard(store, model, None, Failing(0)).skipped


def test_a_run_without_a_shard_says_what_shards_left_and_ends_it(store: Store, model: Path) -> None:
    first = score_shard(store, model, "1/3")
    with pytest.raises(ScoringError, match="fails on purpose"):
        score_shard(store, model, "2/3", Failing(2))
    last = score_shard(store, model, "3/3")
    assert last.missing_shards == ["2/3"]
    again = score_shard(store, model, "3/3", Failing(0))  # done: nothing is loaded, and nothing recorded twice
    assert (again.n_rows_now, again.check, again.missing_shards) == (0, None, ["2/3"])
    report = score_shard(store, model, None)
    assert report.published
    assert any(f"left rows undone: 2/3 ({last.n_missing} rows)" in warning for warning in report.warnings)
    assert losses(store, report.scorer_id).keys() == corpus_ids(store)
    assert report.n_rows_now == last.n_missing < N_ROWS
    checks = store.read_json(f"scores/chats/{first.scorer_id}/scorer.json")["checks"]
    assert [check.get("shard") for check in checks] == ["1/3", "3/3", None]


def test_a_shard_whose_check_is_not_done_keeps_the_scorer_unpublished(store: Store, model: Path) -> None:
    n_blocks = 0

    class Counting(ToyEngine):
        def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
            nonlocal n_blocks
            n_blocks += 1
            return super().score(rows)

    score_shard(new_store(Path(str(store.local_path("."))).parent, "count"), model, "2/2", Counting())
    with pytest.raises(ScoringError, match="fails on purpose"):
        score_shard(store, model, "2/2", Failing(n_blocks - 1))  # all rows scored, killed at the check
    report = score_shard(store, model, "1/2")
    assert (report.published, report.n_missing, report.missing_shards) == (False, 0, ["2/2"])
    done = score_shard(store, model, "2/2")
    assert (done.published, done.n_rows_now) == (True, 0)
    assert done.check is not None
    assert done.check["n_new_rows"] > 0


def test_a_part_that_breaks_before_the_last_shard_is_scored_again_by_its_own(store: Store, model: Path) -> None:
    first = score_shard(store, model, "1/2")
    folder = f"scores/chats/{first.scorer_id}"
    name = store.list(folder, "part-*.parquet")[0]
    data = bytearray(store.read_bytes(f"{folder}/{name}"))
    data[len(data) // 3] ^= 0xFF
    store.write_bytes(f"{folder}/{name}", bytes(data))
    second = score_shard(store, model, "2/2")
    assert second.missing_shards == ["1/2"]
    assert any("set aside and scored again" in warning for warning in second.warnings)
    assert score_shard(store, model, "1/2").published
    assert losses(store, first.scorer_id).keys() == corpus_ids(store)


def _in_a_process(root: Path, model: Path, shard: str, gate: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    score_shard(Store(root).open(), model, shard)


def test_shards_that_end_at_the_same_moment_publish_once(store: Store, model: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate, root = context.Barrier(3), store.local_path(".")
    workers = [context.Process(target=_in_a_process, args=(root, model, f"{i}/3", gate)) for i in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    report = score_shard(store, model, None, Failing(0))
    assert report.skipped
    assert losses(store, report.scorer_id).keys() == corpus_ids(store)
    checks = store.read_json(f"scores/chats/{report.scorer_id}/scorer.json")["checks"]
    assert [check["shard"] for check in checks] == ["1/3", "2/3", "3/3"]


def test_the_command_scores_shards_with_a_real_model(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model_folder(tmp_path / "tiny")
    common = ["score", "--corpus", "chats", "--model", str(model), "--role", "aligned", "--dtype", "float32",
              "--device", "cpu", "--threads", "1", "--max-length", "120"]  # fmt: skip
    here, whole = ["--store", str(store.local_path("."))], ["--store", str(tmp_path / "whole")]
    new_store(tmp_path, "whole")
    assert main([*common, *here, "--shard", "1/2"]) == 0
    out = capsys.readouterr().out
    assert "shard 1/2 is done" in out
    assert "before these shards are done: 2/2" in out
    assert main([*common, *here, "--shard", "2/2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["published"]
    assert main([*common, *whole, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scorer_id"] == report["scorer_id"]
    expected = losses(Store(tmp_path / "whole").open(), report["scorer_id"])
    for key, (status, loss) in losses(store, report["scorer_id"]).items():
        assert status == expected[key][0]
        assert loss == (None if expected[key][1] is None else pytest.approx(expected[key][1], rel=1e-6))
    for wrong, message in (
        ("0/2", "counted from 1/2 to 2/2"),
        ("3", "write I/N"),
        ("a/b", "write I/N"),
        ("1/0", "I/N"),
    ):
        assert main([*common, *here, "--shard", wrong]) == 2
        assert message in capsys.readouterr().err


def test_shards_by_name() -> None:
    assert str(Shard.parse("2/8")) == "2/8"
    with pytest.raises(BadInputError, match="counted from 1"):
        Shard.parse("9/8")
