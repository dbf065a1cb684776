"""Wide tables: the same mixes with and without, rebuilt when a part changed, nothing believed of a killed writer."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.__main__ import main
from curator.errors import IntegrityError
from curator.mix.build import build_mix
from curator.mix.files import mix_batches, row_lines
from curator.mix.resolve import resolve
from curator.query.gaps import GapSpec
from curator.query.queries import gap_table
from curator.select import pool as widebuild
from curator.select.columns import (
    Coded,
    HashIds,
    TextIds,
    halves_of,
)
from curator.select.pool import arranged
from curator.select.ranking import ArrayScores
from curator.select.wide import Member, Wide
from curator.select.widefile import (
    TEXT_BATCH_ROWS,
    Texts,
    read_wide,
    write_texts,
    write_wide,
)
from curator.store.schema import SCORES
from curator.store.store import Store
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
    widebuild._open.clear()


@pytest.fixture
def keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are kept on disk however small the corpus is."""
    monkeypatch.setattr(widebuild, "KEEP_FROM_ROWS", 1)


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
    assert not store.exists("wide")
    monkeypatch.setattr(widebuild, "KEEP_FROM_ROWS", 1)
    for _ in range(2):  # made now, then read from disk
        widebuild._open.clear()
        assert {name: mixed(store, tmp_path, fields) for name, fields in RECIPES.items()} == unkept
    (key,) = store.list("wide/chats")
    assert {"columns.arrow", "texts.arrow"} < set(store.list(f"wide/chats/{key}"))
    assert store.list(f"wide/chats/{key}", "signatures-*"), "the near-duplicate filter keeps its signatures"
    store.delete("wide")
    widebuild._open.clear()
    assert {name: mixed(store, tmp_path, fields) for name, fields in RECIPES.items()} == unkept


def test_prepare_makes_what_the_first_mix_then_finds(
    tmp_path: Path, keeps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    store = scored_store(tmp_path / "store")
    command = ["prepare", "--store", str(tmp_path / "store"), "--corpus", "chats", "--json"]
    assert main([*command, "--near-duplicates", "response"]) == 0
    told = json.loads(capsys.readouterr().out)
    folder = Path(told["folder"])
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"columns.arrow", "texts.arrow"} < set(files)
    assert [name for name in files if name.startswith("signatures-response-")]
    assert told["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    widebuild._open.clear()
    mixed(store, tmp_path, {"rows": 3})
    assert main(command) == 0
    assert files.items() <= {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items()


def test_prepare_says_when_a_corpus_is_too_small_to_need_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = scored_store(tmp_path / "store")
    assert main(["prepare", "--store", str(tmp_path / "store"), "--corpus", "chats"]) == 0
    assert "nothing kept" in capsys.readouterr().out
    assert not store.exists("wide")


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
def test_a_wide_table_gives_what_the_gap_query_gives(tmp_path: Path, fields: dict[str, Any]) -> None:
    store = scored_store(tmp_path / "store")
    data = resolve(store, recipe(rows=1, **fields))[1][0]
    pool, wide = data.pool, data.kept.wide
    expected = gap_table(store, data.scorers, pool.score.eps, pool.ensemble.reducer, pool.ensemble.weights)
    by_id = np.argsort(wide.rank)
    found = data.rows(by_id)
    for name in ("example_id", "source", "domain", "gap_abs", "gap_rel", "sum_gap", "mean_nll_misaligned"):
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    every_loss = [item if item else None for item in found["losses"].to_pylist()]
    assert every_loss == [item if item else None for item in expected["losses"].to_pylist()]
    np.testing.assert_array_equal(data.candidates.scores.known[by_id], expected["complete"].to_numpy())
    assert data.candidates.counts["n_chars"][by_id].tolist() == expected["n_chars"].to_pylist()


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
    assert len(store.list("wide/chats")) == 2


@pytest.mark.usefixtures("keeps")
def test_at_most_four_tables_stay(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    for _ in range(6):
        path = next(f"scores/chats/{item}/scorer.json" for item in store.list("scores/chats"))
        document = store.read_json(path)
        store.write_json(path, {**document, "seconds": document["seconds"] + 1})
        mixed(store, tmp_path, RECIPES["top"])
    assert len(store.list("wide/chats")) == widebuild.KEPT


@pytest.mark.usefixtures("keeps")
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_table_is_made_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    store = scored_store(tmp_path / "store")
    before = mixed(store, tmp_path, RECIPES["top"])
    (key,) = store.list("wide/chats")
    damage(Path(store.url(f"wide/chats/{key}/columns.arrow")))
    widebuild._open.clear()
    assert mixed(store, tmp_path, RECIPES["top"]) == before


@pytest.mark.usefixtures("keeps")
def test_a_store_that_cannot_be_written_is_mixed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = scored_store(tmp_path / "store")
    data = resolve(store, recipe(rows=3))[1][0]
    assert data.kept.folder is not None
    store.delete("wide")
    widebuild._open.clear()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(widebuild, "write_wide", full)
    again = resolve(store, recipe(rows=3))[1][0]
    assert again.kept.folder is None
    assert again.candidates_sha256 == data.candidates_sha256
    assert store.list("wide/chats") == []


@pytest.mark.usefixtures("keeps")
def test_a_table_that_another_process_kept_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = scored_store(tmp_path / "store")
    in_memory, inodes = widebuild._in_memory, []

    def overtaken(*arguments: Any) -> widebuild.Kept:
        made = in_memory(*arguments)
        monkeypatch.setattr(widebuild, "_in_memory", in_memory)
        (key,) = widebuild._building
        widebuild._found(*arguments[:2], arguments[2], key)  # the other process, from its start to its end
        inodes.append(Path(store.url(f"wide/chats/{key}/columns.arrow")).stat().st_ino)
        return made

    widebuild._building.clear()
    monkeypatch.setattr(widebuild, "_in_memory", overtaken)
    kept = resolve(store, recipe(rows=3))[1][0].kept
    assert kept.folder is not None
    assert [(kept.folder / "columns.arrow").stat().st_ino] == inodes
    assert store.stale("wide/chats", ".tmp-*", -1.0) == []


@pytest.mark.usefixtures("keeps")
def test_a_table_that_is_swept_in_the_moment_it_is_kept_is_mixed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = scored_store(tmp_path / "store")
    before = mixed(store, tmp_path, RECIPES["top"])
    store.delete("wide")
    widebuild._open.clear()
    rename = Store.rename_dir

    def swept(at: Store, temporary: str, final: str) -> bool:
        done = rename(at, temporary, final)
        if final.startswith("wide/"):
            at.delete(final)
        return done

    monkeypatch.setattr(Store, "rename_dir", swept)
    assert mixed(store, tmp_path, RECIPES["top"]) == before


@pytest.mark.usefixtures("keeps")
def test_a_text_that_is_not_the_scored_one_is_refused(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    mixed(store, tmp_path, RECIPES["top"])
    (key,) = store.list("wide/chats")
    path = Path(store.url(f"wide/chats/{key}/texts.arrow"))
    write_texts(path, iter([["[]"] * 40]))
    widebuild._open.clear()
    with pytest.raises(IntegrityError, match="do not hash to their ids"):
        mixed(store, tmp_path, RECIPES["top"])


SCRIPT = """
import os, signal, sys
from pathlib import Path
from curator import widebuild
from curator.__main__ import main
from curator.mix.build import build_mix
from curator.store.store import Store
from tests.mix_stores import recipe, task_set

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

widebuild.KEEP_FROM_ROWS = 1
if sys.argv[3] == "columns written":
    widebuild.write_texts = die
elif sys.argv[3] == "before the rename":
    rename = Store.rename_dir
    Store.rename_dir = lambda self, a, b: die() if b.startswith("wide/") else rename(self, a, b)
elif sys.argv[3] == "signatures":
    import numpy as np
    np.save = lambda file, made: (file.write(b"half"), file.flush(), die())
build_mix(Store(sys.argv[1]).open(), task_set(Path(sys.argv[2]), 30), recipe(rows=5, filters=["near_duplicates"]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("keeps")
@pytest.mark.parametrize("where", ["columns written", "before the rename", "signatures"])
def test_what_a_killed_writer_left_is_not_believed(tmp_path: Path, where: str) -> None:
    store = scored_store(tmp_path / "store")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(tmp_path), where]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], check=False, timeout=240)
    assert done.returncode == -signal.SIGKILL
    fields = {"rows": 5, "filters": ["near_duplicates"]}
    kept = mixed(store, tmp_path, fields)
    (key,) = store.list("wide/chats")
    assert len(store.list(f"wide/chats/{key}", "signatures-*")) == 1
    left = [name for name in os.listdir(store.url("wide/chats")) if name.startswith(".tmp-")]  # noqa: PTH208
    assert bool(left) == (where != "signatures")
    store.delete("wide")
    widebuild._open.clear()
    assert mixed(store, tmp_path, fields) == kept


def made(losses: list[list[float]], domains: list[int]) -> Wide:
    """A table of rows with an aligned and three misaligned losses each, in the order of ids."""
    means = np.array(losses, dtype=np.float64).reshape(len(losses), 4)
    n_rows = len(means)
    halves = np.stack([np.arange(n_rows, dtype=np.uint64) // 3, np.arange(n_rows, dtype=np.uint64)], axis=1)
    members = (Member("a", "aligned"), *(Member(f"m{k}", "misaligned") for k in range(3)))
    labels = {"domain": Coded(np.array(domains, np.int32), ("x", "y"))}
    numbers = {"n_chars": np.ones(n_rows, np.int32)}
    counts = np.full((n_rows, 4), 2, np.int32)
    return arranged(members, halves, np.zeros(n_rows, np.uint8), labels, numbers, 2 * means, counts, means)


LOSS = st.one_of(st.sampled_from([0.0, 0.5, 1.0, float("nan")]), st.floats(0, 50))
ROWS = st.lists(st.tuples(st.lists(LOSS, min_size=4, max_size=4), st.integers(0, 1), st.booleans()), max_size=60)


@settings(max_examples=40, deadline=None)
@given(
    ROWS,
    st.integers(0, 70),
    st.sets(st.integers(0, 2), min_size=1),
    st.sampled_from(["mean", "median", "min", "max"]),
    st.sampled_from(["gap_rel", "gap_abs"]),
)
def test_the_best_by_bounds_are_the_best_of_all(
    rows: list[tuple[list[float], int, bool]], n: int, models: set[int], reducer: Any, name: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("curator.select.wide", "curator.select.pool"):
            patch.setattr(f"{module}.BLOCK_ROWS", 4)  # many blocks of few rows
        wide = made([row[0] for row in rows], [row[1] for row in rows])
        scores = wide.scores(wide.choice(name, [f"m{k}" for k in models], GapSpec(reducer=reducer)))
        among = np.array([row[2] for row in rows], dtype=np.bool_)
        best = scores.best(among, n)
        np.testing.assert_array_equal(scores.at(best), scores.every[best])
        np.testing.assert_array_equal(scores.known, ~np.isnan(scores.every))
        assert best.tolist() == ArrayScores(scores.every, wide.rank).best(among, n).tolist()


@settings(deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=30), st.data())
def test_ids_as_arrays_are_ids_as_texts(raw: list[bytes], data: st.DataObject) -> None:
    texts = [item.hex() for item in raw]
    rank = TextIds(texts).rank
    ids = HashIds(halves_of(texts), rank)
    assert [*ids] == texts == [ids[i] for i in range(len(texts))]
    wanted = data.draw(st.sets(st.sampled_from([*texts, "f" * 32, "0" * 32]))) if texts else {"0" * 32}
    assert ids.held(wanted).tolist() == TextIds(texts).held(wanted).tolist()
    asked = sorted(wanted)
    assert ids.rows_of(asked).tolist() == [texts.index(item) if item in texts else -1 for item in asked]


def test_ids_that_share_their_first_half_are_told_apart() -> None:
    texts = sorted(f"{1:016x}{i:016x}" for i in range(5))
    ids = HashIds(halves_of(texts), np.arange(5))
    assert ids.rows_of([texts[3], f"{1:016x}{9:016x}", texts[0]]).tolist() == [3, -1, 0]


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    wide = made([[1.0, 2.0, 3.0, 4.0], [1.0, float("nan"), 2.0, 2.0]], [0, 1])
    write_wide(tmp_path / "w.arrow", wide)
    again = read_wide(tmp_path / "w.arrow")
    for name in ("halves", "rank", "refusals", "nll_sum", "n_tokens", "mean_nll", "lacks", "bounds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(wide, name))
    assert (again.members, again.digests) == (wide.members, wide.digests)
    assert again.labels["domain"].texts(np.arange(2)) == wide.labels["domain"].texts(np.arange(2)) == ["x", "y"]


def test_texts_are_read_in_any_order(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(5 * TEXT_BATCH_ROWS + 3)]
    write_texts(tmp_path / "t.arrow", iter([texts[:7], texts[7:50], texts[50:]]))
    rows = np.array([82, 0, 17, 16, 15, 82, 40])
    assert Texts(tmp_path / "t.arrow")(rows) == [texts[i] for i in rows.tolist()]


def test_the_order_of_parts_does_not_change_a_mix(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    before = mixed(store, tmp_path, RECIPES["top"])
    part = Path(store.url("corpora/chats/part-0.parquet"))
    table = pq.read_table(part)
    pq.write_table(table.take(pa.array(range(len(table) - 1, -1, -1))), part)
    assert mixed(store, tmp_path, RECIPES["top"]) == before
