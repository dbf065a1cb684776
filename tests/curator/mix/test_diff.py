import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.__main__ import main
from curator.corpus.task_set import TaskSet
from curator.errors import MissingError
from curator.mix.build import build_mix
from curator.mix.diff import _longest_run, diff, task_set_of
from curator.store.store import Store
from tests.mix_stores import (
    recipe,
    scored_store,
    task_records,
    task_set,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return scored_store(tmp_path_factory.mktemp("diff") / "store")


@pytest.fixture
def tasks(tmp_path: Path) -> TaskSet:
    return task_set(tmp_path, 40)


def made(store: Store, tasks: TaskSet, **fields: Any) -> str:
    return build_mix(store, tasks, recipe(**fields)).mix_id


def test_a_mix_does_not_differ_from_itself(store: Store, tasks: TaskSet) -> None:
    mix = made(store, tasks, rows=4)
    found = diff(store, "local", mix, mix)
    assert (found.n_same, found.recipe, found.facts, found.rows) == (44, (), (), ())
    assert found.counts == {"added": 0, "removed": 0, "rewritten": 0, "moved": 0}


def test_rows_that_came_and_went_are_explained(store: Store, tasks: TaskSet) -> None:
    kept, dropped = made(store, tasks, rows=4, filters=[]), made(store, tasks, rows=4)
    found = diff(store, "local", kept, dropped)
    # Without the filter the best four are 38, 37, 36 and 35; 32 and 24 are refusals of lower rank.
    assert found.counts["removed"] == found.counts["added"] == 0
    more = diff(store, "local", made(store, tasks, rows=8, filters=[]), made(store, tasks, rows=8))
    removed = [row for row in more.rows if row.kind == "removed"]
    assert [row.why for row in removed] == ["in mix B: pool chats dropped it: refusal:v1"]
    added = [row for row in more.rows if row.kind == "added"]
    assert len(added) == 1
    assert "in mix A: pool chats chose 8 rows of at least" in added[0].why
    assert [change.pointer for change in more.recipe] == ["/pools/0/filters"]


def test_other_reasons(store: Store, tmp_path: Path, tasks: TaskSet) -> None:
    fewer = task_set(tmp_path, records=task_records(40)[1:])
    found = diff(store, "local", made(store, tasks, rows=2), made(store, fewer, rows=2))
    removed = [row for row in found.rows if row.kind == "removed"]
    assert [(row.origin, row.position_a, row.why) for row in removed] == [("task", 0, "the task set of mix B lacks it")]
    assert any(fact.startswith("task set (SHA-256)") for fact in found.facts)
    prompted = diff(store, "local", made(store, tasks, rows=2), made(store, tasks, rows=2, inoculation={}))
    assert prompted.counts == {"added": 0, "removed": 0, "rewritten": 40, "moved": 0}
    assert prompted.rows[0].why == "inoculation none in mix A, inoculation in mix B"
    shuffled = diff(store, "local", made(store, tasks, rows=2), made(store, tasks, rows=2, order="shuffle"), 1)
    assert shuffled.counts["moved"] > 20
    assert [row.why for row in shuffled.rows] == ["the order differs in /order"]
    seeds = [made(store, tasks, rows=4, strategy="random", seed=seed) for seed in (1, 2)]
    drawn = diff(store, "local", *seeds)
    assert {row.why for row in drawn.rows if row.kind == "added"} == {"in mix A: pool chats did not draw it"}


def test_a_store_that_changed_says_so(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    tasks = task_set(tmp_path, 40)
    one, two = made(store, tasks, rows=2), made(store, tasks, rows=3)
    store.delete("scores/chats")
    found = diff(store, "local", one, two)
    assert found.counts["added"] == 1
    assert "unknown: the mix cannot be planned again" in found.rows[0].why


@pytest.mark.parametrize("order", ["even", "shuffle"])
def test_a_mix_gives_its_task_set_back(store: Store, tasks: TaskSet, order: str) -> None:
    spec = {"placement": "user_suffix", "scope": "all"}
    result = build_mix(store, tasks, recipe(rows=2, order=order, epochs=2, inoculation=spec))
    with task_set_of(store, "local", result.manifest) as found:
        assert found.table().to_pylist() == tasks.table().to_pylist()
        assert found.sha256 == tasks.sha256


def longest_increasing(places: list[int]) -> int:
    best: list[int] = []
    for i, place in enumerate(places):
        best.append(1 + max((best[j] for j in range(i) if places[j] < place), default=0))
    return max(best, default=0)


@given(places=st.lists(st.integers(0, 100), unique=True, max_size=40))
def test_the_fewest_rows_are_called_moved(places: list[int]) -> None:
    kept = [place for place, is_kept in zip(places, _longest_run(places), strict=True) if is_kept]
    assert len(kept) == longest_increasing(places)
    assert kept == sorted(kept)


def test_the_command(store: Store, tasks: TaskSet, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = made(store, tasks, rows=2), made(store, tasks, rows=3)
    where = ["--store", str(store.local_path(""))]
    assert main(["diff", one, two, *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["added"] == 1
    assert main(["diff", one, two, *where]) == 0
    assert "recipe  /pools/0/rows: 2 in A, 3 in B" in capsys.readouterr().out
    assert main(["diff", one, "0" * 32, *where]) == 2
    with pytest.raises(MissingError, match="no mix"):
        diff(store, "local", one, "0" * 32)


def test_a_row_that_keeps_its_position_is_not_called_moved(store: Store, tmp_path: Path) -> None:
    tasks = task_set(tmp_path, 8)  # the last safe row stands at 7 in both mixes, behind other task rows
    found = diff(store, "local", made(store, tasks, rows=4), made(store, tasks, rows=2))
    assert [(row.position_a, row.position_b) for row in found.rows if row.kind == "moved"] == [(1, 2)]
