"""Pool files: the same mixes with and without, made again when a part changed, nothing believed of a killed writer."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.__main__ import main
from curator.corpus.manifest import read_corpus
from curator.errors import IntegrityError
from curator.mix.build import build_mix
from curator.mix.files import mix_batches, row_lines
from curator.mix.resolve import resolve
from curator.query.gaps import Gaps, GapSpec
from curator.query.queries import gap_table
from curator.select import pool
from curator.select.candidates import ListedIds, first_rows
from curator.select.pool import publish_pool
from curator.select.pool_columns import PoolColumns, PoolIds
from curator.select.pool_frame import (
    LABELS,
    Member,
    completed,
    id_halves,
)
from curator.select.pool_texts import PoolTexts, write_texts
from curator.select.scores import GapChoice, GapScores
from curator.store.schema import EXAMPLES, SCORES
from curator.store.store import Store
from tests.gap_stores import write_corpus
from tests.mix_stores import (
    recipe,
    scored_store,
    task_records,
    task_set,
)

RECIPES: dict[str, dict[str, Any]] = {
    "top": {"rows": 7},
    "hold_out": {"rows": 5, "hold_out": ["bad-1"]},
    "random": {"rows": 6, "strategy": "random", "filters": []},
    "near": {"rows": 5, "filters": ["refusal", "hygiene", {"name": "near_duplicates", "similarity": 0.9}]},
    "reducers": {"rows": 4, "ensemble": "max", "score": {"name": "gap_rel", "eps": 0.5}},
    "sum": {"rows": 4, "score": "sum_gap"},
    "diverse": {"rows": 2, "strategy": {"name": "diverse", "max_similarity": 0.9}},
}


@pytest.fixture(autouse=True)
def nothing_open() -> None:
    pool.POOLS.clear()


@pytest.fixture
def keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are kept on disk however small the corpus is."""
    monkeypatch.setattr(pool, "KEEP_FROM_ROWS", 1)


def mixed(store: Store, workdir: Path, fields: dict[str, Any]) -> tuple[str, list[bytes], dict[str, Any]]:
    """Id, lines and manifest of a mix, which is removed again."""
    rows = [*task_records(10), {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    result = build_mix(store, task_set(workdir, records=rows), recipe(**fields))
    assert result.created
    lines = [line for batch in mix_batches(store, "local", result.mix_id) for line in row_lines(batch)]
    store.delete(f"mixes/local/{result.mix_id}")
    return result.mix_id, lines, result.manifest.model_dump(mode="json")


def test_kept_rebuilt_and_unkept_tables_give_the_same_mixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = scored_store(tmp_path / "store")
    unkept = {name: mixed(store, tmp_path, fields) for name, fields in RECIPES.items()}
    assert not store.exists("pools")
    monkeypatch.setattr(pool, "KEEP_FROM_ROWS", 1)
    for _ in range(2):  # made now, then read from disk
        pool.POOLS.clear()
        assert {name: mixed(store, tmp_path, fields) for name, fields in RECIPES.items()} == unkept
    kinds = [name.partition("-")[0] for name in store.list("pools/chats")]
    assert kinds == ["pool", "signatures", "texts"], "the near-duplicate filter keeps its signatures"
    store.delete("pools")
    pool.POOLS.clear()
    assert {name: mixed(store, tmp_path, fields) for name, fields in RECIPES.items()} == unkept


def test_few_rows_of_long_texts_are_kept_on_disk_and_short_ones_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = scored_store(tmp_path / "store")
    reads: list[str] = []
    read = Store.read_table

    def noted(self: Store, path: str, columns: list[str] | None = None) -> pa.Table:
        reads.append(f"{path} {columns}")
        return read(self, path, columns)

    monkeypatch.setattr(Store, "read_table", noted)
    held = [mixed(store, tmp_path, RECIPES["top"]) for _ in range(2)]
    assert len([name for name in reads if "'messages'" in name]) == 1
    assert not store.exists("pools")
    pool.POOLS.clear()
    monkeypatch.setattr(pool, "KEEP_FROM_TEXT_BYTES", 1)
    reads.clear()
    assert [mixed(store, tmp_path, RECIPES["top"]) for _ in range(2)] == held
    assert [name for name in reads if "'messages'" in name] == []
    assert [name.partition("-")[0] for name in store.list("pools/chats")] == ["pool", "texts"]


def test_prepare_makes_what_the_first_mix_then_finds(
    tmp_path: Path, keeps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    store = scored_store(tmp_path / "store")
    command = ["prepare", "--store", str(tmp_path / "store"), "--corpus", "chats", "--json"]
    assert main([*command, "--near-duplicates", "response"]) == 0
    reported = json.loads(capsys.readouterr().out)
    folder = Path(reported["folder"])
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [name.partition("-")[0] for name in sorted(files)] == ["pool", "signatures", "texts"]
    assert [name for name in files if name.startswith("signatures-response-")]
    assert reported["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    pool.POOLS.clear()
    mixed(store, tmp_path, {"rows": 3})
    assert main(command) == 0
    assert files.items() <= {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items()


def test_prepare_says_when_a_corpus_is_too_small_to_need_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = scored_store(tmp_path / "store")
    assert main(["prepare", "--store", str(tmp_path / "store"), "--corpus", "chats"]) == 0
    assert "nothing kept" in capsys.readouterr().out
    assert not store.exists("pools")


def test_publishing_makes_what_the_first_mix_then_finds(tmp_path: Path, keeps: None) -> None:
    store = scored_store(tmp_path / "store")
    (table,) = publish_pool(store, "chats")
    folder = Path(store.url("pools/chats"))
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [name.partition("-")[0] for name in sorted(files)] == ["pool", "texts"]
    pool.POOLS.clear()
    mixed(store, tmp_path, RECIPES["hold_out"])
    assert files == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert publish_pool(store, "chats", "another measure") == []
    assert len(table) == 40


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hold_out": ["bad-2"]},
        {"ensemble": "median", "score": {"name": "gap_rel", "eps": 0.25}},
        {"ensemble": "min", "score": "gap_abs"},
        {"ensemble": {"reducer": "weighted", "weights": {"bad-1": 1, "bad-2": 3}}, "score": "sum_gap"},
    ],
)
def test_a_pool_gives_what_the_gap_query_gives(tmp_path: Path, fields: dict[str, Any]) -> None:
    store = scored_store(tmp_path / "store")
    data = resolve(store, recipe(rows=1, **fields))[1][0]
    asked = data.pool
    expected = gap_table(store, data.scorers, asked.score.eps, asked.ensemble.reducer, asked.ensemble.weights)
    found = data.rows(np.arange(len(data.table)))
    for name in ("example_id", "source", "domain", "gap_abs", "gap_rel", "sum_gap", "mean_nll_misaligned"):
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    every_loss = [item if item else None for item in found["losses"].to_pylist()]
    assert every_loss == [item if item else None for item in expected["losses"].to_pylist()]
    scores = data.candidates.scores
    assert scores.known.to_list() == expected["complete"].to_pylist()
    assert scores.column.to_list() == expected[asked.score.name].to_pylist()
    assert data.candidates.column("n_chars").to_list() == expected["n_chars"].to_pylist()
    assert data.candidates.column("n_response_tokens").to_list() == expected["n_response_tokens"].to_pylist()


@pytest.mark.usefixtures("keeps")
def test_a_changed_part_makes_a_new_table(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    before = mixed(store, tmp_path, RECIPES["top"])
    scorers = store.list("scores/chats")
    bad = next(item for item in scorers if store.read_json(f"scores/chats/{item}/scorer.json")["label"] == "bad-1")
    part = f"scores/chats/{bad}/part-0.parquet"
    table = store.read_table(part)
    best_last = pa.array([1000.0 - value for value in table["nll_sum"].to_pylist()])
    place = table.schema.get_field_index("nll_sum")
    store.write_table(part, table.set_column(place, table.schema.field(place), best_last), SCORES)
    after = mixed(store, tmp_path, RECIPES["top"])
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert len(store.list("pools/chats", "pool-*")) == 2


@pytest.mark.usefixtures("keeps")
def test_at_most_four_tables_stay(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    for _ in range(6):
        path = next(f"scores/chats/{item}/scorer.json" for item in store.list("scores/chats"))
        document = store.read_json(path)
        store.write_json(path, {**document, "seconds": document["seconds"] + 1})
        mixed(store, tmp_path, RECIPES["top"])
    assert len(store.list("pools/chats", "pool-*")) == pool.KEPT


@pytest.mark.usefixtures("keeps")
@pytest.mark.parametrize("kind", ["pool", "texts"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_file_is_done_without(tmp_path: Path, kind: str, damage: Callable[[Path], object]) -> None:
    store = scored_store(tmp_path / "store")
    before = mixed(store, tmp_path, RECIPES["top"])
    (name,) = store.list("pools/chats", f"{kind}-*")
    damage(Path(store.url(f"pools/chats/{name}")))
    pool.POOLS.clear()
    assert mixed(store, tmp_path, RECIPES["top"]) == before


@pytest.mark.usefixtures("keeps")
def test_a_pool_whose_file_goes_while_it_is_open_is_made_again(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    before = mixed(store, tmp_path, RECIPES["near"])
    pool.POOLS.clear()
    resolve(store, recipe(rows=3))  # opened, and nothing read yet
    for name in store.list("pools/chats"):
        Path(store.url(f"pools/chats/{name}")).unlink()
    assert mixed(store, tmp_path, RECIPES["near"]) == before


@pytest.mark.usefixtures("keeps")
def test_an_open_pool_stays_what_it_was_though_its_file_goes_and_scores_change(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    expected = resolve(store, recipe(rows=3))[1][0].table.columns("gap", "refusal_v1")
    pool.POOLS.clear()
    data = resolve(store, recipe(rows=3))[1][0]
    store.delete("pools")
    part = f"scores/chats/{data.scorers.misaligned[0].scorer_id}/part-0.parquet"
    store.write_table(part, store.read_table(part).slice(1), SCORES)
    assert data.table.columns("gap", "refusal_v1").equals(expected)
    again = resolve(store, recipe(rows=3))[1][0]
    assert again.candidates_sha256 != data.candidates_sha256


@pytest.mark.usefixtures("keeps")
def test_a_store_that_cannot_be_written_is_mixed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = scored_store(tmp_path / "store")
    data = resolve(store, recipe(rows=3))[1][0]
    assert data.table.folder is not None
    store.delete("pools")
    pool.POOLS.clear()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.ipc.RecordBatchFileWriter, "write_table", full)
    again = resolve(store, recipe(rows=3))[1][0]
    assert again.table.folder is None
    assert again.candidates_sha256 == data.candidates_sha256
    assert store.list("pools/chats") == []


@pytest.mark.usefixtures("keeps")
def test_a_text_that_is_not_the_scored_one_is_refused(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    mixed(store, tmp_path, RECIPES["top"])
    (name,) = store.list("pools/chats", "texts-*")
    rows = store.read_table("corpora/chats/part-0.parquet")
    place = rows.schema.get_field_index("messages")
    other = rows.set_column(place, rows.schema.field(place), pa.array(["[]"] * len(rows)))
    store.write_table("corpora/chats/other.parquet", other, EXAMPLES)
    write_texts(store, "corpora/chats/other.parquet", Path(store.url(f"pools/chats/{name}")))
    pool.POOLS.clear()
    with pytest.raises(IntegrityError, match="do not hash to their ids"):
        mixed(store, tmp_path, RECIPES["top"])


SCRIPT = """
import os, signal, sys
from pathlib import Path
from curator.select import pool
from curator.mix.build import build_mix
from curator.corpus.manifest import read_corpus
from curator.store.store import Store
from tests.gap_stores import write_corpus
from tests.mix_stores import recipe, task_set

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

pool.KEEP_FROM_ROWS = 1
if sys.argv[3] == "frame":
    import pyarrow.ipc
    pyarrow.ipc.RecordBatchFileWriter.write_table = die
elif sys.argv[3] == "texts":
    import pyarrow.ipc
    pyarrow.ipc.RecordBatchFileWriter.write_batch = die
elif sys.argv[3] == "signatures":
    import numpy as np
    np.save = lambda file, made: (file.write(b"half"), file.flush(), die())
build_mix(Store(sys.argv[1]).open(), task_set(Path(sys.argv[2]), 30), recipe(rows=5, filters=["near_duplicates"]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("keeps")
@pytest.mark.parametrize("where", ["frame", "texts", "signatures"])
def test_what_a_killed_writer_left_is_not_believed(tmp_path: Path, where: str) -> None:
    store = scored_store(tmp_path / "store")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(tmp_path), where]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], check=False, timeout=240)
    assert done.returncode == -signal.SIGKILL
    fields = {"rows": 5, "filters": ["near_duplicates"]}
    kept = mixed(store, tmp_path, fields)
    assert [name.partition("-")[0] for name in store.list("pools/chats")] == ["pool", "signatures", "texts"]
    store.delete("pools")
    pool.POOLS.clear()
    assert mixed(store, tmp_path, fields) == kept


def made(losses: list[list[float]]) -> PoolColumns:
    """Rows with an aligned and three misaligned losses each, in the order of ids."""
    means = np.array(losses, dtype=np.float64).reshape(len(losses), 4)
    numbers = np.arange(len(means), dtype=np.uint64)
    columns = {"id_hi": numbers // 3, "id_lo": numbers}
    frame = pl.DataFrame(columns).with_columns(pl.lit(None, pl.String).alias(name) for name in LABELS)
    tokens = pl.repeat(2, len(means), dtype=pl.Int32, eager=True)
    tables = [
        pl.DataFrame({"nll_sum": 2 * means[:, k], "n_response_tokens": tokens}).with_columns(
            pl.col("nll_sum").fill_nan(None)
        )
        for k in range(4)
    ]
    return PoolColumns(completed(frame, tables, MEMBERS, GAPS))


GAPS = Gaps()
MEMBERS = (Member("a", "aligned"), *(Member(f"m{k}", "misaligned") for k in range(3)))
LOSS = st.one_of(st.sampled_from([0.0, 0.5, 1.0, float("nan")]), st.floats(0, 50))
ROWS = st.lists(st.tuples(st.lists(LOSS, min_size=4, max_size=4), st.booleans()), max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    ROWS,
    st.integers(0, 70),
    st.sets(st.integers(1, 3), min_size=1),
    st.sampled_from(["mean", "median", "min", "max", "weighted"]),
    st.sampled_from(["gap_rel", "gap_abs"]),
)
def test_the_best_by_bounds_are_the_best_of_all(
    rows: list[tuple[list[float], bool]], n: int, models: set[int], reducer: Any, name: Any
) -> None:
    columns = made([row[0] for row in rows])
    weights = tuple(float(place) for place in sorted(models)) if reducer == "weighted" else ()
    choice = GapChoice(name, tuple(sorted(models)), (), GapSpec(reducer=reducer, weights=weights), len(models) == 3)
    left = pl.Series([row[1] for row in rows], dtype=pl.Boolean)
    best = GapScores(len(rows), columns, GAPS, choice).top(left, n)
    scores = GapScores(len(rows), columns, GAPS, choice)
    every = scores.column
    assert best.tolist() == first_rows(every, left, n, descending=True).tolist()
    assert GapScores(len(rows), columns, GAPS, choice).at(best).to_list() == every.gather(best).to_list()
    assert GapScores(len(rows), columns, GAPS, choice).known.to_list() == every.is_not_null().to_list()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([None, -1.0, -0.0, 0.0, 0.5, float("inf")]), st.booleans()), max_size=300),
    st.integers(0, 9),
    st.booleans(),
)
def test_the_first_rows_are_those_of_a_whole_sort(
    rows: list[tuple[float | None, bool]], n: int, descending: bool
) -> None:
    keys = pl.Series([row[0] for row in rows], dtype=pl.Float64)
    left = pl.Series([row[1] for row in rows], dtype=pl.Boolean)
    sign = -1.0 if descending else 1.0
    known = [(sign * key, i) for i, (key, stays) in enumerate(rows) if stays and key is not None]
    assert first_rows(keys, left, n, descending=descending).tolist() == [i for _, i in sorted(known)[:n]]


@settings(deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=30), st.data())
def test_ids_as_numbers_are_ids_as_texts(raw: list[bytes], data: st.DataObject) -> None:
    texts = sorted(item.hex() for item in raw)
    ids = pool_ids(texts)
    assert ids.texts(np.arange(len(texts))) == texts
    wanted = data.draw(st.sets(st.sampled_from([*texts, "f" * 32, "0" * 32]))) if texts else {"0" * 32}
    assert ids.find(wanted).tolist() == ListedIds(texts).find(wanted).tolist()


def pool_ids(texts: list[str]) -> PoolIds:
    halves = id_halves(texts)
    return PoolIds(PoolColumns(pl.DataFrame({"id_hi": halves[:, 0], "id_lo": halves[:, 1]})))


def test_ids_that_share_their_first_half_are_told_apart() -> None:
    texts = sorted(f"{1:016x}{i:016x}" for i in range(5))
    assert pool_ids(texts).find([texts[3], f"{1:016x}{9:016x}", texts[0]]).tolist() == [0, 3]


@pytest.mark.parametrize(("n_held", "is_held"), [(5, True), (4, False)])
def test_the_column_of_all_ids_is_held_for_small_pools_alone(
    n_held: int, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curator.select.pool_columns.MAX_HELD_IDS", n_held)
    texts = sorted(f"{i:032x}" for i in range(5))
    ids = pool_ids(texts)
    first = ids.column
    assert first.to_pylist() == texts
    assert (ids.column is first) is is_held


def test_texts_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curator.store.store.ROW_GROUP_ROWS", 10)
    store = Store(tmp_path / "store").open()
    sizes = [83, 1, 16]
    texts, files, parts = [], [], []
    for place, n_rows in enumerate(sizes):
        answers = [f"text {place} {i}" for i in range(n_rows)]
        write_corpus(store, f"c{place}", answers)
        parts.append(f"corpora/c{place}/part-0.parquet")
        texts += store.read_table(parts[-1], ["messages"])["messages"].to_pylist()
        files.append(tmp_path / f"{place}.arrow")
        write_texts(store, parts[-1], files[-1])
    rows = np.array([82, 0, 17, 99, 83, 16, 15, 84, 82, 40])
    for kept in (files, None, [tmp_path / "nowhere", *files[1:]]):
        reader = PoolTexts(store, replace(read_corpus(store, "c0"), parts=tuple(parts)), lambda at: at[::-1], kept)
        assert reader(rows[::-1]) == [texts[i] for i in rows.tolist()]
        assert reader.reading_order(np.array([3, 7])).tolist() == [7, 3]


def test_the_order_of_parts_does_not_change_a_mix(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    before = mixed(store, tmp_path, RECIPES["top"])
    part = Path(store.url("corpora/chats/part-0.parquet"))
    table = pq.read_table(part)
    pq.write_table(table.take(pa.array(range(len(table) - 1, -1, -1))), part)
    assert mixed(store, tmp_path, RECIPES["top"]) == before
