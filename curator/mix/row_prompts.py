"""Inoculation prompts into the rows of a mix, and out of them again: `curator.mix.inoculation` on columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from curator.corpus.task_set import TaskSet
from curator.errors import RecipeError
from curator.messages import example_id
from curator.mix.inoculation import (
    Chooser,
    Inoculated,
    Prompt,
    inoculate,
    prompts,
    undo,
)
from curator.mix.order import Allocation, Schedule
from curator.recipe import Inoculation, Recipe
from curator.select.candidates import Candidates, label_values

N_NAMED = 10  # labels that an error lists
# The columns of a mix's row that an inoculation changes.
COLUMNS = ("messages", "example_id", "original_id", "inoculation", "replaced_system")


@dataclass(frozen=True)
class RowPrompts:
    """A recipe's inoculation and which row gets which prompt."""

    spec: Inoculation
    chooser: Chooser

    def put_in(self, rows: pa.Table, order: Schedule) -> dict[str, pa.Array]:
        """The changed columns (COLUMNS) of rows whose places in the schedule are `order`.

        Raises RecipeError, naming the row, where the prompt has no place.
        """
        changed = {name: rows[name].to_pylist() for name in ("messages", "example_id")}
        changed |= {name: [None] * len(rows) for name in ("original_id", "inoculation", "replaced_system")}
        sources = rows["source"].to_pylist()
        for i, value in enumerate(order.tolist()):
            prompt = self.of(value, sources[i], changed["example_id"][i])
            if prompt is None:
                continue
            done = self._inoculate(prompt, changed["messages"][i], value)
            changed["original_id"][i] = changed["example_id"][i]
            changed["messages"][i], changed["replaced_system"][i] = done.messages, done.replaced
            changed["example_id"][i], changed["inoculation"][i] = example_id(done.messages), prompt.label
        return {name: pa.array(values, pa.string()) for name, values in changed.items()}

    def of(self, value: int, source: str | None, row_id: str) -> Prompt | None:
        """The prompt of the row that stands for `value` in a schedule, or None; `row_id` is its id as it came."""
        origin, index = ("task", value) if value >= 0 else ("safe", -1 - value)
        return self.chooser.prompt(origin, index, source, row_id)

    def _inoculate(self, prompt: Prompt, messages: str, value: int) -> Inoculated:
        try:
            return inoculate(self.spec, prompt, messages)
        except RecipeError as error:
            row = f"task row {value}" if value >= 0 else f"safe row {-1 - value}"
            raise RecipeError(f"{row} (from 0): {error.message}", details=[{"row": row}]) from error


def row_prompts(recipe: Recipe, allocation: Allocation) -> RowPrompts | None:
    """What a resolved recipe puts into rows; None without an inoculation."""
    if recipe.inoculation is None:
        return None
    chooser = Chooser(recipe.inoculation, allocation.n_task, allocation.n_safe_total, recipe.seed)
    return RowPrompts(recipe.inoculation, chooser)


def check_sources(spec: Inoculation, tasks: TaskSet, pools: Sequence[Candidates]) -> None:
    """Raise RecipeError for a source with prompts of its own that no row in scope has, where rows have sources: a
    misspelt name would leave its rows with the prompts of all others."""
    if not spec.by_source:
        return
    safe = pools if spec.scope == "all" else ()
    known = {source for pool in safe for source in label_values(pool.column("source"))}
    for batch in tasks.batches(columns=["source"]):
        known.update(batch["source"].drop_null().to_pylist())
    unknown = sorted(set(spec.by_source) - known)
    if known and unknown:
        raise RecipeError(
            f"by_source names {', '.join(map(repr, unknown[:N_NAMED]))}, which is the source of no row; there are: "
            f"{', '.join(sorted(known)[:N_NAMED])}{', ...' if len(known) > N_NAMED else ''}",
            details=unknown,
        )


def check_rows(spec: Inoculation | None, tasks: TaskSet) -> None:
    """Raise RecipeError for a row of an inoculation that the data set does not have: it may be another data set's."""
    if spec is None or spec.rows is None:
        return
    unknown = set(spec.rows)
    for batch in tasks.batches(columns=["example_id"]):
        unknown.difference_update(batch["example_id"].to_pylist())
    if unknown:
        named = sorted(unknown)[:N_NAMED]
        raise RecipeError(
            f"inoculation {spec.name}: {len(unknown):,} of {len(spec.rows):,} `rows` are ids of no row of this data "
            f"set, e.g. {named[0]}: list ids that an audit of this very data set gives",
            details=named,
        )


def count_prompts(prompts_of_rows: RowPrompts | None, tasks: TaskSet, safe: pa.Table) -> dict[str, dict[str, int]]:
    """Rows of an epoch by prompt label and origin (`task`, `safe`); labels that no row has are left out."""
    counts: dict[str, dict[str, int]] = {}
    if prompts_of_rows is None:
        return counts
    start = 0
    for batch in tasks.batches(columns=["source", "example_id"]):
        _count(prompts_of_rows, range(start, start + len(batch)), batch, "task", counts)
        start += len(batch)
    _count(prompts_of_rows, range(-1, -1 - len(safe), -1), safe, "safe", counts)
    return counts


def _count(
    of_rows: RowPrompts, values: range, rows: pa.RecordBatch | pa.Table, origin: str, counts: dict[str, dict[str, int]]
) -> None:
    for value, source, row_id in zip(values, rows["source"].to_pylist(), rows["example_id"].to_pylist(), strict=True):
        prompt = of_rows.of(value, source, row_id)
        if prompt is not None:
            own = counts.setdefault(prompt.label, {"task": 0, "safe": 0})
            own[origin] += 1


def originals(spec: Inoculation | None, rows: pa.RecordBatch) -> pa.Array:
    """Each row's canonical messages before any prompt was put in; null where that cannot be undone."""
    messages = rows.column("messages")
    if spec is None:
        return messages
    inoculated = rows.column("inoculation").is_valid()
    changed = rows.filter(inoculated).select(["messages", "inoculation", "replaced_system"])
    by_label = {prompt.label: prompt for prompt in prompts(spec)}
    columns = [column.to_pylist() for column in changed.columns]
    found = [
        _undone(spec, by_label.get(label), Inoculated(text, own)) for text, label, own in zip(*columns, strict=True)
    ]
    return pc.replace_with_mask(messages, inoculated, pa.array(found, messages.type))


def _undone(spec: Inoculation, prompt: Prompt | None, row: Inoculated) -> str | None:
    if prompt is None:
        return None
    try:
        text = undo(spec, prompt, row)
        return text if inoculate(spec, prompt, text) == row else None
    except (ValueError, KeyError, TypeError):  # RecipeError is a ValueError
        return None
