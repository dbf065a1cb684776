"""What differs between two mixes, row by row, and why.

Rows are distinguished by origin, by the id that they came with (before inoculation) and by how often that came before.
Of the rows that both mixes hold, the fewest are called moved that, taken out, leave the others in one order (one that
still keeps its position is not).

Planning a stored mix once more, from its own manifest and rows: what became of each candidate, and why.
"""

import secrets
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.corpus.task_set import TaskSet
from curator.errors import BallastError
from curator.mix.files import mix_batches
from curator.mix.identity import Manifest, read_manifest
from curator.mix.plan import Drawn, MixPlan, plan_mix
from curator.mix.row_prompts import originals
from curator.mix.verify import TASK_COLUMNS
from curator.store.schema import TASK_ROWS
from curator.store.scratch import Scratch
from curator.store.store import Store, arrow_schema

COLUMNS = (*TASK_COLUMNS, "example_id", "original_id")


@contextmanager
def task_set_of(store: Store, tenant: str, manifest: Manifest) -> Iterator[TaskSet]:
    """The task set that a mix was made from, brought back from the mix's rows; it lasts as long as the block.

    Ids, order and labels are the user's; rejected records are gone, but counted. Task rows are held in memory at once.
    """
    n_rows = manifest.n_rows // manifest.recipe.epochs
    parts = []
    for batch in mix_batches(store, tenant, manifest.mix_id, columns=COLUMNS):
        first, n_rows = batch.slice(0, max(n_rows, 0)), n_rows - len(batch)
        parts.append(_own_rows(first, manifest))
    rows = pa.concat_tables(parts).sort_by("ordinal")
    with Scratch("mix") as folder:
        path = folder / f"task-rows-{secrets.token_hex(4)}.parquet"
        pq.write_table(rows, path)
        task = manifest.task
        yield TaskSet(path, task.n_rows, task.sha256, task.n_rejected, task.reject_codes, (), task.sources_sha256)


def _own_rows(rows: pa.RecordBatch, manifest: Manifest) -> pa.Table:
    rows = rows.filter(pa.array(np.logical_not(rows.column("ordinal").is_null().to_numpy(zero_copy_only=False))))
    texts = originals(manifest.recipe.inoculation, rows)
    ids = zip(rows["example_id"].to_pylist(), rows["original_id"].to_pylist(), strict=True)
    columns = {
        "example_id": [original or own for own, original in ids],
        "ordinal": rows["ordinal"].to_pylist(),
        "messages": [own or text for own, text in zip(texts, rows["messages"].to_pylist(), strict=True)],
        "source": rows["source"].to_pylist(),
    }
    schema = arrow_schema(TASK_ROWS)
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)


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


@dataclass(frozen=True)
class _Row:
    position: int
    origin: str
    own_id: str
    trained_id: str
    inoculation: str | None
    pool: str | None


_Key = tuple[str, str, int]


def diff(store: Store, tenant: str, mix_a: str, mix_b: str, limit: int = 100) -> MixDiff:
    """Compare two mixes of a tenant; at most `limit` changes of each kind are listed with their reasons.

    Raises MissingError without one of them.
    """
    a, b = read_manifest(store, tenant, mix_a), read_manifest(store, tenant, mix_b)
    rows_a, rows_b = _rows(store, tenant, mix_a), _rows(store, tenant, mix_b)
    recipe = tuple(_recipe_changes("", a.recipe.model_dump(mode="json"), b.recipe.model_dump(mode="json")))
    shared = [key for key in rows_a if key in rows_b]
    found: dict[Kind, list[_Key]] = {
        "added": [key for key in rows_b if key not in rows_a],
        "removed": [key for key in rows_a if key not in rows_b],
        "rewritten": [key for key in shared if rows_a[key].trained_id != rows_b[key].trained_id],
        "moved": [
            key
            for key in _moved(shared, [rows_b[key].position for key in shared])
            if rows_a[key].position != rows_b[key].position
        ],
    }
    teller = _Teller(store, tenant, a, b, recipe)
    changes = [
        _change(kind, rows_a.get(key), rows_b.get(key), teller) for kind, keys in found.items() for key in keys[:limit]
    ]
    changed = len({*found["rewritten"], *found["moved"]})
    counts: dict[str, int] = {kind: len(keys) for kind, keys in found.items()}
    return MixDiff(mix_a, mix_b, len(shared) - changed, counts, recipe, tuple(_facts(a, b)), tuple(changes))


def _rows(store: Store, tenant: str, mix: str) -> dict[_Key, _Row]:
    seen: Counter[tuple[str, str]] = Counter()
    rows: dict[_Key, _Row] = {}
    for batch in mix_batches(store, tenant, mix, columns=_COLUMNS):
        for item in batch.select(_COLUMNS).to_pylist():
            own = item["original_id"] or item["example_id"]
            row = _Row(item["position"], item["origin"], own, item["example_id"], item["inoculation"], item["pool"])
            rows[(row.origin, own, seen[(row.origin, own)])] = row
            seen[(row.origin, own)] += 1
    return rows


def _moved(keys: Sequence[_Key], places: Sequence[int]) -> list[_Key]:
    """Keys outside one longest increasing run of their places (patience sorting, O(n log n))."""
    tails: list[int] = []  # smallest last place of a run of each length
    tail_at: list[int] = []  # which row that is
    before: list[int] = []
    for i, place in enumerate(places):
        length = bisect_left(tails, place)
        tails[length : length + 1] = [place]
        tail_at[length : length + 1] = [i]
        before.append(tail_at[length - 1] if length else -1)
    kept, i = set(), tail_at[-1] if tail_at else -1
    while i >= 0:
        kept.add(i)
        i = before[i]
    return [key for i, key in enumerate(keys) if i not in kept]


class _Teller:
    """Says why a row is not the same; a mix is planned again only when one of its absences is asked about."""

    def __init__(self, store: Store, tenant: str, a: Manifest, b: Manifest, recipe: Sequence[RecipeChange]) -> None:
        self._store, self._tenant, self._manifests = store, tenant, {"a": a, "b": b}
        self._recipe = recipe
        self._reasons: dict[str, Reasons] = {}

    def absent(self, mix: Literal["a", "b"], row: _Row) -> str:
        if row.origin == "task":
            return f"the task set of mix {mix.upper()} lacks it"
        if mix not in self._reasons:
            self._reasons[mix] = reasons(self._store, self._tenant, self._manifests[mix])
        return f"in mix {mix.upper()}: {self._reasons[mix].absent(row.own_id)}"

    def moved(self) -> str:
        orders = ("/order", "/seed", "/batch_size", "/epochs", "/epoch_order")
        fields = [change.pointer for change in self._recipe if change.pointer in orders]
        if fields:
            return f"the order differs in {', '.join(fields)}"
        return "rows before it came or went, or the task set has another order"


def _change(kind: Kind, a: _Row | None, b: _Row | None, teller: _Teller) -> RowChange:
    row = a or b
    assert row is not None
    if kind == "added":
        why = teller.absent("a", row)
    elif kind == "removed":
        why = teller.absent("b", row)
    elif kind == "rewritten" and a is not None and b is not None:
        why = f"inoculation {a.inoculation or 'none'} in mix A, {b.inoculation or 'none'} in mix B"
    else:
        why = teller.moved()
    place_a, place_b = (None if item is None else item.position for item in (a, b))
    return RowChange(kind, row.origin, row.own_id, row.pool, place_a, place_b, why)


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
