"""The row-by-row part of verifying a mix: one pass in batches, memory flat but for the rows' ids (16 bytes each)."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from curator.messages import example_id
from curator.mix.files import json_lines, text_lines
from curator.mix.order import Allocation, Schedule, pool_of
from curator.mix.row_prompts import originals, row_prompts
from curator.recipe import Inoculation, Recipe

MAX_LISTED = 10  # rows listed for each kind of problem; the rest is counted
ORDINAL_WINDOW = 200_000  # task rows held at once while a shuffled mix is brought back into the user's order
SORTED_ROWS = 16_384  # made into lines at once
TASK_COLUMNS = ("ordinal", "source", "messages", "inoculation", "replaced_system")  # what `task_hashes` reads
OTHER_SAFE, OTHER_TASK = (f"another {origin} row than in the first epoch" for origin in ("safe", "task"))
REPEATED = "a safe row that came before"


class RowCheck:
    """Compares the rows of a mix with what its recipe gives; feed batches in order to `add`.

    Inoculated rows are checked both ways: the prompt is the one that the recipe deals to the row, and taking it out
    gives back the row whose id stands beside it.
    """

    def __init__(self, allocation: Allocation, order: Schedule, recipe: Recipe, pools: list[str]) -> None:
        self._order, self._allocation = order, allocation
        self._prompts = row_prompts(recipe, allocation)
        self._cycled = [pool for pool, spec in zip(pools, recipe.pools, strict=True) if spec.when_short == "cycle"]
        self._pools, self._pool_of = pa.array(pools, pa.string()), pool_of(allocation.n_safe)
        self._done = 0
        self._lines = hashlib.sha256()
        # Ids of the first epoch: safe rows by their number in the schedule, then, where a later epoch is compared with
        # them, task rows by ordinal.
        n_task = allocation.n_task if allocation.epochs > 1 else 0
        self._ids = np.zeros((allocation.n_safe_total + n_task, 2), dtype=np.uint64)
        self._may_repeat = np.zeros(allocation.n_safe_total, dtype=np.bool_)
        self._starts: list[int] = []  # first row of each batch
        self._found: dict[str, list[int]] = {}

    @property
    def rows_sha256(self) -> str:
        """SHA-256 of the canonical lines of the rows seen so far."""
        return self._lines.hexdigest()

    @property
    def n_rows(self) -> int:
        """Rows seen so far."""
        return self._done

    def problems(self) -> list[str]:
        """One sentence for each kind of problem, naming the first rows (0-based positions) that have it."""
        found = self._found | ({REPEATED: repeated} if (repeated := self._repeated()) else {})

        def noted(item: tuple[str, list[int]]) -> tuple[int, bool, int]:
            what, (first, *_) = item
            by_id = what in (REPEATED, OTHER_SAFE, OTHER_TASK)
            return bisect_right(self._starts, first), by_id, first if by_id else 0

        return [
            f"{what} in {len(rows)} rows, first at {', '.join(map(str, rows[:MAX_LISTED]))}"
            for what, rows in sorted(found.items(), key=noted)
        ]

    def add(self, batch: pa.RecordBatch) -> None:
        """Check the next rows."""
        self._starts.append(self._done)
        self._lines.update(json_lines(batch))
        expected = self._order[self._done : self._done + len(batch)]
        present = batch.slice(0, len(expected))
        self._compare(present, expected)
        self._check_ids(present, expected)
        self._done += len(batch)

    def _compare(self, batch: pa.RecordBatch, expected: Schedule) -> None:
        is_task = expected >= 0
        pools = np.zeros(len(expected), dtype=np.int64)
        pools[~is_task] = self._pool_of[-1 - expected[~is_task]]
        positions = np.arange(self._done, self._done + len(expected))
        epochs = None if self._allocation.epochs > 1 else np.ones(len(expected), dtype=np.bool_)
        columns = {
            "position": pa.array(positions),
            "epoch": pa.array((positions // self._allocation.n_epoch_rows + 1).astype(np.int32), mask=epochs),
            "origin": pa.array(np.where(is_task, "task", "safe")),
            "ordinal": pa.array(expected, mask=~is_task),
            "pool": self._pools.take(pa.array(pools, mask=is_task)),
            "inoculation": pa.array(self._labels(batch, expected), pa.string()),
        }
        for name, wanted in columns.items():
            found = batch.column(name)
            if not found.equals(wanted):
                pairs = zip(found.to_pylist(), wanted.to_pylist(), strict=True)
                wrong = [i for i, (value, other) in enumerate(pairs) if value != other]
                self._note(f"another {name} than the recipe gives", wrong)

    def _labels(self, batch: pa.RecordBatch, expected: Schedule) -> list[str | None]:
        if self._prompts is None:
            return [None] * len(expected)
        came_as = pc.coalesce(batch.column("original_id"), batch.column("example_id"))
        rows = zip(expected.tolist(), batch.column("source").to_pylist(), came_as.to_pylist(), strict=True)
        prompts = (self._prompts.of(*row) for row in rows)
        return [None if prompt is None else prompt.label for prompt in prompts]

    def _check_ids(self, batch: pa.RecordBatch, expected: Schedule) -> None:
        ids = batch.column("example_id")
        follow = pa.array(map(example_id, batch.column("messages").cast(pa.binary()).to_pylist()), pa.string())
        self._note("an example_id that does not follow from the messages", _differing(ids, follow))
        rows = np.arange(len(expected)) if self._allocation.epochs > 1 else np.flatnonzero(expected < 0)
        values, halves = expected[rows], _halves(self._original_ids(batch).take(pa.array(rows)))
        is_task, is_first = values >= 0, self._done + rows < self._allocation.n_epoch_rows
        places = np.where(is_task, self._allocation.n_safe_total + values, -1 - values)
        self._ids[places[is_first]] = halves[is_first]
        pools = pc.is_in(batch.column("pool"), pa.array(self._cycled, pa.string())).to_numpy(zero_copy_only=False)
        first_safe = is_first & ~is_task
        self._may_repeat[places[first_safe]] = pools[rows[first_safe]]
        other = (self._ids[places] != halves).any(axis=1)
        self._note(OTHER_SAFE, rows[other & ~is_task])
        self._note(OTHER_TASK, rows[other & is_task])

    def _original_ids(self, batch: pa.RecordBatch) -> pa.Array:
        """Ids before inoculation: `original_id`, else `example_id`."""
        stated, labels = batch.column("original_id"), batch.column("inoculation")
        if labels.null_count == stated.null_count == len(batch):
            return batch.column("example_id")
        texts = originals(None if self._prompts is None else self._prompts.spec, batch)
        undone = [None if text is None else example_id(text) for text in texts.filter(stated.is_valid()).to_pylist()]
        follow = pc.replace_with_mask(stated, stated.is_valid(), pa.array(undone, pa.string()))
        wrong = {*_differing(stated, follow), *_differing(stated.is_valid(), labels.is_valid())}
        self._note("an original_id that does not follow when the inoculation is undone", sorted(wrong))
        return pc.coalesce(stated, batch.column("example_id"))

    def _repeated(self) -> list[int]:
        """Safe rows of the first epoch, seen so far, whose id came before, where their pool does not cycle."""
        order = self._order[: min(self._done, self._allocation.n_epoch_rows)]
        rows = np.flatnonzero(order < 0)
        numbers = -1 - order[rows]
        ids = pl.DataFrame(self._ids[numbers], schema=["high", "low"])
        is_first = ids.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
        return rows[~is_first & ~self._may_repeat[numbers]].tolist()  # type: ignore[no-any-return]

    def _note(self, what: str, rows: Iterable[int]) -> None:
        found = [self._done + int(row) for row in rows]
        if found:
            self._found.setdefault(what, []).extend(found)


def _differing(one: pa.Array, two: pa.Array) -> list[int]:
    """Places where two columns differ; null is equal to null alone."""
    if one.equals(two):
        return []
    return pl.Series(one).ne_missing(pl.Series(two)).arg_true().to_list()


def _halves(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """The halves of ids, shape (n, 2); 0 for text that is not a hexadecimal number: no example has such an id."""
    digits = pl.Series("id", ids, pl.String).to_frame()
    halves = [
        pl.col("id").str.slice(start, 16).str.to_integer(base=16, dtype=pl.UInt64, strict=False).fill_null(0)
        for start in (0, 16)
    ]
    return digits.select(high=halves[0], low=halves[1]).to_numpy()


def task_hashes(
    batches: Callable[[], Iterator[pa.RecordBatch]],
    allocation: Allocation,
    spec: Inoculation | None,
    in_order: bool,
) -> tuple[str, str | None]:
    """SHA-256 over the task rows' own canonical JSON lines in the user's order, and over their source labels.

    They are those of `TaskSet`; rows that cannot be brought back count as their trained text. `batches()` starts a
    new pass over the mix (TASK_COLUMNS), of which the first epoch is read. A mix that keeps the task rows' order needs
    one pass; a shuffled one needs one for each window of ordinals, so that memory stays bounded.
    """
    digest, sources, labelled = hashlib.sha256(), hashlib.sha256(), False
    window = allocation.n_task if in_order else ORDINAL_WINDOW
    for start in range(0, allocation.n_task, window):
        pieces = _task_rows(batches(), allocation.n_epoch_rows, start, start + window, spec)
        for rows in pieces if in_order else _by_ordinal(pieces):
            digest.update(text_lines(rows["messages"]))
            found = rows["source"]
            sources.update(b"".join(orjson.dumps(source) + b"\n" for source in found.to_pylist()))
            labelled = labelled or found.null_count < len(rows)
    return digest.hexdigest(), sources.hexdigest() if labelled else None


def _task_rows(
    batches: Iterator[pa.RecordBatch], n_rows: int, start: int, end: int, spec: Inoculation | None
) -> Iterator[pa.RecordBatch]:
    """Ordinal, own text and source of the task rows from `start` to `end` among the first `n_rows` rows."""
    for batch in batches:
        batch, n_rows = batch.slice(0, n_rows), n_rows - len(batch)
        ordinals = batch.column("ordinal")
        inside = batch.filter(pc.and_(pc.greater_equal(ordinals, start), pc.less(ordinals, end)))
        texts = pc.coalesce(originals(spec, inside), inside["messages"])
        columns = [inside["ordinal"], texts, inside["source"]]
        yield pa.RecordBatch.from_arrays(columns, ["ordinal", "messages", "source"])
        if n_rows <= 0:
            return


def _by_ordinal(pieces: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows by ordinal, some thousands at a time."""
    # By Polars, which sorts references to texts and does not copy them.
    rows = pl.concat([pl.DataFrame(pa.Table.from_batches([piece])) for piece in pieces]).sort("ordinal")
    for some in rows.iter_slices(SORTED_ROWS):
        yield from some.to_arrow().to_batches()
