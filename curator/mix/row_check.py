"""A mix's rows against its recipe, for `verify`: one pass in batches, memory flat but for the rows' ids."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from curator.messages import example_id
from curator.mix.files import json_lines
from curator.mix.order import Allocation, Schedule, pool_of
from curator.mix.row_prompts import originals, row_prompts
from curator.recipe import Inoculation, Recipe

MAX_LISTED = 10  # rows listed for each kind of problem; the rest is counted
ORDINAL_WINDOW = 200_000  # task rows held at once while a shuffled mix is brought back into the user's order
TASK_COLUMNS = ("ordinal", "source", "messages", "inoculation", "replaced_system")  # what `task_hashes` reads


class RowCheck:
    """Compares the rows of a mix with what its recipe gives; feed batches in order to `add`.

    Inoculated rows are checked both ways: the prompt is the one that the recipe deals to the row, and taking it out
    gives back the row whose id stands beside it.
    """

    def __init__(self, allocation: Allocation, order: Schedule, recipe: Recipe, pools: list[str]) -> None:
        self._order, self._allocation = order, allocation
        self._prompts = row_prompts(recipe, allocation)
        self._cycled = [pool for pool, spec in zip(pools, recipe.pools, strict=True) if spec.when_short == "cycle"]
        self._pool_of = np.array(pools, dtype=object)[pool_of(allocation.n_safe)]
        self._done = 0
        self._lines = hashlib.sha256()
        self._safe_ids: dict[int, str] = {}  # by number in the schedule
        self._seen: set[str] = set()
        # Ids of the task rows by ordinal, to compare later epochs with.
        self._task_ids = np.zeros(allocation.n_task if allocation.epochs > 1 else 0, dtype="S16")
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
        return [
            f"{what} in {len(rows)} rows, first at {', '.join(map(str, rows[:MAX_LISTED]))}"
            for what, rows in self._found.items()
        ]

    def add(self, batch: pa.RecordBatch) -> None:
        """Check the next rows."""
        self._lines.update(json_lines(batch))
        expected = self._order[self._done : self._done + len(batch)]
        present = batch.slice(0, len(expected))
        self._compare(present, expected)
        self._check_ids(present, expected)
        self._done += len(batch)

    def _compare(self, batch: pa.RecordBatch, expected: Schedule) -> None:
        is_task = expected >= 0
        pools = np.full(len(expected), None, dtype=object)
        pools[~is_task] = self._pool_of[-1 - expected[~is_task]]
        positions = np.arange(self._done, self._done + len(expected))
        epochs = None if self._allocation.epochs > 1 else np.ones(len(expected), dtype=np.bool_)
        columns = {
            "position": pa.array(positions),
            "epoch": pa.array((positions // self._allocation.n_epoch_rows + 1).astype(np.int32), mask=epochs),
            "origin": pa.array(np.where(is_task, "task", "safe")),
            "ordinal": pa.array(expected, mask=~is_task),
            "pool": pa.array(pools, pa.string()),
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
        sources = batch.column("source").to_pylist()
        prompts = (self._prompts.of(value, source) for value, source in zip(expected.tolist(), sources, strict=True))
        return [None if prompt is None else prompt.label for prompt in prompts]

    def _check_ids(self, batch: pa.RecordBatch, expected: Schedule) -> None:
        ids, messages = batch.column("example_id").to_pylist(), batch.column("messages").to_pylist()
        wrong = [i for i, text in enumerate(messages) if example_id(text) != ids[i]]
        self._note("an example_id that does not follow from the messages", wrong)
        before, pools = self._original_ids(batch, ids), batch.column("pool").to_pylist()
        checked = np.arange(len(expected)) if len(self._task_ids) else np.flatnonzero(expected < 0)
        for i, value in zip(checked.tolist(), expected[checked].tolist(), strict=True):
            if value < 0:
                self._check_safe(i, -1 - value, before[i], pools[i])
            else:
                self._check_task(i, value, before[i])

    def _original_ids(self, batch: pa.RecordBatch, ids: list[str]) -> list[str]:
        stated = batch.column("original_id").to_pylist()
        labels = batch.column("inoculation").to_pylist()
        if not any(labels) and not any(stated):
            return ids
        spec = None if self._prompts is None else self._prompts.spec
        texts = originals(spec, batch)
        wrong = [i for i, item in enumerate(stated) if (item is None) != (labels[i] is None)]
        undone = [None if text is None else example_id(text) for text in texts]
        wrong += [i for i, item in enumerate(stated) if item is not None and item != undone[i]]
        self._note("an original_id that does not follow when the inoculation is undone", sorted(set(wrong)))
        return [own if item is None else item for own, item in zip(ids, stated, strict=True)]

    def _check_safe(self, row: int, number: int, found: str, pool: str | None) -> None:
        known = self._safe_ids.get(number)
        if known is not None and known != found:
            self._note("another safe row than in the first epoch", [row])
        elif known is None and found in self._seen and pool not in self._cycled:
            self._note("a safe row that came before", [row])
        self._safe_ids.setdefault(number, found)
        self._seen.add(found)

    def _check_task(self, row: int, ordinal: int, found: str) -> None:
        digest = bytes.fromhex(found)
        if self._done + row < self._allocation.n_epoch_rows:
            self._task_ids[ordinal] = digest
        elif self._task_ids[ordinal] != digest.rstrip(b"\x00"):
            self._note("another task row than in the first epoch", [row])

    def _note(self, what: str, rows: Iterable[int]) -> None:
        found = [self._done + int(row) for row in rows]
        if found:
            self._found.setdefault(what, []).extend(found)


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
        rows = _task_rows(batches(), allocation.n_epoch_rows, start, start + window, spec)
        for _, text, source in rows if in_order else sorted(rows, key=lambda row: row[0]):
            digest.update(text.encode() + b"\n")
            sources.update(orjson.dumps(source) + b"\n")
            labelled = labelled or source is not None
    return digest.hexdigest(), sources.hexdigest() if labelled else None


def _task_rows(
    batches: Iterator[pa.RecordBatch], n_rows: int, start: int, end: int, spec: Inoculation | None
) -> Iterator[tuple[int, str, str | None]]:
    """Ordinal, own text and source of the task rows from `start` to `end` among the first `n_rows` rows."""
    for batch in batches:
        batch, n_rows = batch.slice(0, n_rows), n_rows - len(batch)
        ordinals = batch.column("ordinal")
        inside = batch.filter(pc.and_(pc.greater_equal(ordinals, start), pc.less(ordinals, end)))
        texts = [own or text for own, text in zip(originals(spec, inside), inside["messages"].to_pylist(), strict=True)]
        yield from zip(inside["ordinal"].to_pylist(), texts, inside["source"].to_pylist(), strict=True)
        if n_rows <= 0:
            return
