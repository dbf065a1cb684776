"""What differs between two mixes, row by row, and why.

Rows are distinguished by origin, by the id that they came with (before inoculation) and by how often that came before.
Of the rows that both mixes hold, the fewest are called moved that, taken out, leave the others in one order (one that
still keeps its position is not).

The reason why a row is absent comes from planning the stored mix once more, from its own manifest and rows.
"""

import secrets
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.corpus.task_set import TaskSet
from curator.errors import BallastError
from curator.mix.files import mix_batches
from curator.mix.identity import Manifest, read_manifest
from curator.mix.plan import Drawn, MixPlan, plan_mix
from curator.mix.row_check import TASK_COLUMNS
from curator.mix.row_prompts import originals
from curator.store.schema import TASK_ROWS
from curator.store.scratch import Scratch
from curator.store.store import Store, arrow_schema

COLUMNS = (*TASK_COLUMNS, "example_id", "original_id")
_BATCH_ROWS = 16_384


@contextmanager
def task_set_of(store: Store, tenant: str, manifest: Manifest) -> Iterator[TaskSet]:
    """The task set that a mix was made from, brought back from the mix's rows; it lasts as long as the block.

    Ids, order and labels are the user's; rejected records are gone, but counted. The task rows of a shuffled mix are
    held in memory at once.
    """
    task = manifest.task
    with Scratch("mix") as folder:
        path = folder / f"task-rows-{secrets.token_hex(4)}.parquet"
        parts = _own_rows(store, tenant, manifest)
        with pq.ParquetWriter(path, arrow_schema(TASK_ROWS)) as writer:
            if manifest.recipe.order == "shuffle":
                writer.write_table(pa.concat_tables(parts).sort_by("ordinal"))
            else:  # the first epoch has them in the user's order
                for part in parts:
                    writer.write_table(part)
        yield TaskSet(path, task.n_rows, task.sha256, task.n_rejected, task.reject_codes, (), task.sources_sha256)


def _own_rows(store: Store, tenant: str, manifest: Manifest) -> Iterator[pa.Table]:
    """The task rows of the first epoch as they were before any inoculation, in the mix's order."""
    n_rows = manifest.n_rows // manifest.recipe.epochs
    schema = arrow_schema(TASK_ROWS)
    for batch in mix_batches(store, tenant, manifest.mix_id, _BATCH_ROWS, columns=COLUMNS):
        first, n_rows = batch.slice(0, max(n_rows, 0)), n_rows - len(batch)
        rows = first.filter(first.column("ordinal").is_valid())
        columns = {
            "example_id": pc.coalesce(rows["original_id"], rows["example_id"]),
            "ordinal": rows["ordinal"],
            "messages": pc.coalesce(originals(manifest.recipe.inoculation, rows), rows["messages"]),
            "source": rows["source"],
        }
        yield pa.table({name: columns[name] for name in schema.names}, schema=schema)


class Reasons:
    """Why a mix does not hold a pool row, by its plan; `unknown` is set when the plan cannot be made again."""

    def __init__(self, plan: MixPlan | None, unknown: str | None = None) -> None:
        self.unknown = unknown
        drawn = () if plan is None else plan.drawn
        self._drawn: tuple[Drawn, ...] = drawn

    def absent(self, example_id: str) -> str:
        """One reason for each pool that holds the row, or that none does."""
        if self.unknown is not None:
            return self.unknown
        places = [(item, item.data.candidates.ids.find([example_id])) for item in self._drawn]
        found = [_absent(item, int(rows[0])) for item, rows in places if len(rows)]
        return "; ".join(found) or "no pool of that mix holds the row"


def _absent(drawn: Drawn, candidate: int) -> str:
    reason = drawn.selection.result.reason_of(candidate)
    if reason is not None:
        return f"pool {drawn.name} dropped it: {reason}"
    if not drawn.selection.ranked:
        return f"pool {drawn.name} did not draw it"
    scores, chosen = drawn.data.candidates.scores, drawn.selection.chosen
    lowest = f" of at least {scores.at(chosen).to_numpy().min():.4g}" if len(chosen) else ""
    by = f"by {drawn.data.pool.score.name}: it has {scores.at(np.array([candidate])).to_numpy()[0]:.4g}"
    return f"pool {drawn.name} chose {len(chosen):,} rows{lowest} {by}"


def reasons(store: Store, tenant: str, manifest: Manifest) -> Reasons:
    """The reasons of a stored mix, where the store still gives the same plan."""
    try:
        with task_set_of(store, tenant, manifest) as task_set:
            policy = None if manifest.policy is None else manifest.policy.policy
            plan = plan_mix(store, task_set, manifest.recipe, policy)
    except BallastError as error:
        return Reasons(None, f"unknown: the mix cannot be planned again ({error.message})")
    if plan.mix_id != manifest.mix_id:
        return Reasons(None, "unknown: the store's scores have changed since that mix was made")
    return Reasons(plan)


Kind = Literal["added", "removed", "rewritten", "moved"]
_COLUMNS = ("position", "origin", "example_id", "original_id", "inoculation", "pool")


@dataclass(frozen=True)
class RecipeChange:
    """One field of the resolved recipes, as a JSON pointer, with both values; null where a recipe lacks it."""

    pointer: str
    a: Any
    b: Any


@dataclass(frozen=True)
class RowChange:
    """One row that is not the same in both mixes; positions are null where a mix lacks it."""

    kind: Kind
    origin: str
    example_id: str
    pool: str | None
    position_a: int | None
    position_b: int | None
    why: str


@dataclass(frozen=True)
class MixDiff:
    """The difference of two mixes: added and removed are those of B against A.

    `rows` holds the first changes of each kind, `counts` all; `facts` says in words what else differs.
    """

    mix_a: str
    mix_b: str
    n_same: int
    counts: dict[str, int]
    recipe: tuple[RecipeChange, ...]
    facts: tuple[str, ...]
    rows: tuple[RowChange, ...]


_KEY = ("origin", "own_id", "copy")
_Row = Mapping[str, Any]  # one of `_compared`


def diff(store: Store, tenant: str, mix_a: str, mix_b: str, limit: int = 100) -> MixDiff:
    """Compare two mixes of a tenant; at most `limit` changes of each kind are listed with their reasons.

    Raises MissingError without one of them.
    """
    a, b = read_manifest(store, tenant, mix_a), read_manifest(store, tenant, mix_b)
    recipe = tuple(_recipe_changes("", a.recipe.model_dump(mode="json"), b.recipe.model_dump(mode="json")))
    rows = _compared(_rows(store, tenant, mix_a), _rows(store, tenant, mix_b))
    found: dict[Kind, pl.DataFrame] = {
        "added": rows.filter(pl.col("position_a").is_null()).sort("position_b"),
        "removed": rows.filter(pl.col("position_b").is_null()),
        "rewritten": rows.filter("rewritten"),
        "moved": rows.filter("moved"),
    }
    teller = _Teller(store, tenant, a, b, recipe)
    changes = [
        _change(kind, row, teller) for kind, frame in found.items() for row in frame.head(limit).iter_rows(named=True)
    ]
    counts: dict[str, int] = {kind: frame.height for kind, frame in found.items()}
    n_same = int(rows.select(pl.all_horizontal("shared", ~pl.col("rewritten"), ~pl.col("moved")).sum()).item())
    return MixDiff(mix_a, mix_b, n_same, counts, recipe, tuple(_facts(a, b)), tuple(changes))


def _rows(store: Store, tenant: str, mix: str) -> pl.DataFrame:
    """The rows of a mix in order: `own_id` before inoculation, `copy` counts rows of this origin and id before it."""
    batches = mix_batches(store, tenant, mix, _BATCH_ROWS, columns=_COLUMNS)
    frames = [pl.DataFrame(pa.Table.from_batches([batch])) for batch in batches]
    return (
        pl.concat(frames)
        .with_columns(pl.coalesce("original_id", "example_id").alias("own_id"))
        .with_columns(pl.int_range(pl.len()).over("origin", "own_id").alias("copy"))
        .drop("original_id")
    )


def _compared(a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
    """Every row of both mixes once, by position in A, with the columns of A (`_a`) and B (`_b`).

    `shared` rows are in both; of these `rewritten` ones are trained on another text and `moved` ones stand elsewhere.
    """
    sides = [
        frame.rename({name: f"{name}_{side}" for name in frame.columns if name not in _KEY})
        for side, frame in (("a", a), ("b", b))
    ]
    rows = sides[0].join(sides[1], on=_KEY, how="full", coalesce=True).sort("position_a", nulls_last=True)
    places = pl.col("position_a"), pl.col("position_b")
    rows = rows.with_columns(places[0].is_not_null().and_(places[1].is_not_null()).alias("shared"))
    moved = np.zeros(rows.height, dtype=np.bool_)
    shared = rows["shared"].to_numpy()
    moved[shared] = ~_longest_run(rows.filter("shared")["position_b"].to_list())
    return rows.with_columns(
        (pl.col("shared") & (pl.col("example_id_a") != pl.col("example_id_b"))).alias("rewritten"),
        (pl.Series(moved) & (places[0] != places[1])).alias("moved"),
    )


def _longest_run(places: Sequence[int]) -> npt.NDArray[np.bool_]:
    """A mask of one longest increasing run of places (patience sorting, O(n log n))."""
    tails: list[int] = []  # smallest last place of a run of each length
    tail_at: list[int] = []  # which row that is
    before: list[int] = []
    for i, place in enumerate(places):
        length = bisect_left(tails, place)
        tails[length : length + 1] = [place]
        tail_at[length : length + 1] = [i]
        before.append(tail_at[length - 1] if length else -1)
    kept, i = np.zeros(len(places), dtype=np.bool_), tail_at[-1] if tail_at else -1
    while i >= 0:
        kept[i] = True
        i = before[i]
    return kept


class _Teller:
    """Says why a row is not the same; a mix is planned again only when one of its absences is asked about."""

    def __init__(self, store: Store, tenant: str, a: Manifest, b: Manifest, recipe: Sequence[RecipeChange]) -> None:
        self._store, self._tenant, self._manifests = store, tenant, {"a": a, "b": b}
        self._recipe = recipe
        self._reasons: dict[str, Reasons] = {}

    def absent(self, mix: Literal["a", "b"], row: _Row) -> str:
        if row["origin"] == "task":
            return f"the task set of mix {mix.upper()} lacks it"
        if mix not in self._reasons:
            self._reasons[mix] = reasons(self._store, self._tenant, self._manifests[mix])
        return f"in mix {mix.upper()}: {self._reasons[mix].absent(row['own_id'])}"

    def moved(self) -> str:
        orders = ("/order", "/seed", "/batch_size", "/epochs", "/epoch_order")
        fields = [change.pointer for change in self._recipe if change.pointer in orders]
        if fields:
            return f"the order differs in {', '.join(fields)}"
        return "rows before it came or went, or the task set has another order"


def _change(kind: Kind, row: _Row, teller: _Teller) -> RowChange:
    if kind == "added":
        why = teller.absent("a", row)
    elif kind == "removed":
        why = teller.absent("b", row)
    elif kind == "rewritten":
        why = f"inoculation {row['inoculation_a'] or 'none'} in mix A, {row['inoculation_b'] or 'none'} in mix B"
    else:
        why = teller.moved()
    pool = row["pool_b"] if kind == "added" else row["pool_a"]
    return RowChange(kind, row["origin"], row["own_id"], pool, row["position_a"], row["position_b"], why)


def _recipe_changes(pointer: str, a: Any, b: Any) -> list[RecipeChange]:
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(a.keys() | b.keys())
        return [change for name in names for change in _recipe_changes(f"{pointer}/{name}", a.get(name), b.get(name))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [change for i, (x, y) in pairs for change in _recipe_changes(f"{pointer}/{i}", x, y)]
    return [] if a == b else [RecipeChange(pointer or "/", a, b)]


def _facts(a: Manifest, b: Manifest) -> list[str]:
    policies = [None if item.policy is None else item.policy.name for item in (a, b)]
    pairs = (
        ("task set (SHA-256)", a.task.sha256, b.task.sha256),
        ("policy", *policies),
        ("product version", a.product_version, b.product_version),
        ("safe rows", a.n_safe, b.n_safe),
        ("rows", a.n_rows, b.n_rows),
    )
    facts = [f"{name}: {one} in A, {two} in B" for name, one, two in pairs if one != two]
    for one, two in zip(a.pools, b.pools, strict=False):
        if one.candidates_sha256 != two.candidates_sha256 and one.corpus == two.corpus:
            facts.append(f"pool {one.name}: the rows, labels or losses to choose from differ")
    return facts
