from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curator.mix.allocation import allocate
from curator.mix.build import build_mix
from curator.mix.files import mix_batches
from curator.mix.identity import pool_names
from curator.mix.order import schedule
from curator.mix.row_check import RowCheck
from curator.store.schema import MIX_ROWS
from curator.store.store import Store, arrow_schema
from tests.mix_stores import recipe, scored_store, task_set

Rows = list[dict[str, Any]]
FACTS = ("position", "epoch", "origin", "ordinal", "pool")  # of the place, whatever row stands there


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return scored_store(tmp_path_factory.mktemp("verify") / "store")


def problems(store: Store, tmp_path: Path, change: Callable[[Rows], None], batch: int, **fields: Any) -> list[str]:
    """What is said of a mix of 20 task rows whose rows were changed."""
    manifest = build_mix(store, task_set(tmp_path, 20), recipe(**fields)).manifest
    rows = [row for piece in mix_batches(store, "local", manifest.mix_id) for row in piece.to_pylist()]
    change(rows)
    resolved = manifest.recipe
    allocation = allocate(resolved, 20)
    order = schedule(allocation, resolved.order, resolved.seed)
    check = RowCheck(allocation, order, resolved, pool_names(resolved))
    for piece in pa.Table.from_pylist(rows, arrow_schema(MIX_ROWS)).combine_chunks().to_batches(batch):
        check.add(piece)
    return check.problems()


def put(rows: Rows, target: int, origin: int) -> None:
    """Another row's texts and ids in this place."""
    rows[target] = {**rows[origin], **{name: rows[target][name] for name in FACTS}}


def places(rows: Rows, origin: str, epoch: int | None = None) -> list[int]:
    return [place for place, row in enumerate(rows) if (row["origin"], row["epoch"]) == (origin, epoch)]


@pytest.mark.parametrize("batch", [3, 4096])
@pytest.mark.parametrize("order", ["even", "shuffle"])
def test_a_safe_row_may_come_once_unless_its_pool_cycles(store: Store, tmp_path: Path, order: str, batch: int) -> None:
    def repeat(rows: Rows) -> None:
        first, second, third = places(rows, "safe")[:3]
        put(rows, second, first)
        put(rows, third, first)
        said.append(f"a safe row that came before in 2 rows, first at {second}, {third}")

    said: list[str] = []
    assert problems(store, tmp_path, repeat, batch, rows=4, order=order) == said
    cycled = {"rows": 70, "when_short": "cycle", "max_copies": 3, "order": order}
    assert problems(store, tmp_path, lambda rows: None, batch, **cycled) == []


@pytest.mark.parametrize("batch", [3, 4096])
def test_later_epochs_have_the_rows_of_the_first(store: Store, tmp_path: Path, batch: int) -> None:
    def change(rows: Rows) -> None:
        task, safe = places(rows, "task", 2), places(rows, "safe", 3)
        put(rows, task[1], task[2])
        put(rows, safe[0], places(rows, "task", 1)[0])
        said.append(f"another task row than in the first epoch in 1 rows, first at {task[1]}")
        said.append(f"another safe row than in the first epoch in 1 rows, first at {safe[0]}")

    said: list[str] = []
    assert problems(store, tmp_path, change, batch, rows=4, epochs=3, epoch_order="own") == said


def test_an_id_that_is_no_hash_is_one_fault(store: Store, tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        rows[30]["example_id"] = "not hexadecimal"

    said = problems(store, tmp_path, change, 4096, rows=4, epochs=2)
    assert said[0] == "an example_id that does not follow from the messages in 1 rows, first at 30"
    assert said[1].endswith("row than in the first epoch in 1 rows, first at 30")
