"""Writes a comparison: page, JSON and pictures, side by side."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.errors import BadInputError
from curator.query import plots as drawing
from curator.scoring.engines.torch_model import resolve_device, resolve_dtype
from curator.store.filesystem import atomic_write
from trainer.experiments.compare.cells import Cell
from trainer.experiments.compare.page import Context, Invocation, page
from trainer.experiments.compare.plots import broad_against_narrow, criteria_matrix, ratio_sweep
from trainer.experiments.compare.settings import AnyPlan, Plan
from trainer.experiments.compare.shared import Shared
from trainer.experiments.compare.summary import TableRow, rows
from trainer.runs.folder import write_json
from trainer.runs.machine import describe


@dataclass(frozen=True)
class Comparison:
    """Everything that the page, the JSON and the pictures are made of."""

    rows: Sequence[TableRow]
    plan: AnyPlan
    command: str
    machine: Mapping[str, Any]
    changed: Mapping[str, tuple[Any, Any]]
    not_run: Sequence[str]
    failed: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of the files that the plan names only the last part of their paths."""
        return {
            "format_version": 1, "command": self.command, "machine": dict(self.machine),
            "rows": [row.as_dict() for row in self.rows], "not_run": list(self.not_run), "failed": dict(self.failed),
            "plan": _without_places(self.plan.model_dump(mode="json")),
        }  # fmt: skip


def document(
    plan: AnyPlan, cells: Sequence[Cell], found: Sequence[Mapping[str, Any] | None], shared: Shared | None,
    invocation: Invocation,
) -> Comparison:  # fmt: skip
    """The comparison that the finished cells give."""
    spent = shared.scoring_spent() if shared is not None else {}
    score_s = sum(sum(item.values()) for item in spent.values()) if spent else None
    device, dtype = "cpu", "float32"  # of the toy model
    if isinstance(plan, Plan):
        device = resolve_device(plan.device)
        dtype = resolve_dtype(plan.dtype, device)
    return Comparison(
        rows=rows(cells, found, plan, score_s),
        plan=plan, command=invocation.command, machine=describe(device, dtype), changed=invocation.changed,
        not_run=[f"{cell.label}, seed {cell.seed}" for cell, item in zip(cells, found, strict=True) if item is None],
        failed=invocation.failed,
    )  # fmt: skip


def write_page(out: Path, reported: Comparison, plan: AnyPlan) -> None:
    """OUT.md with OUT.json and OUT-*.png beside it.

    A page that tells of more finished cells is replaced with a line that says so; raises BadInputError where this one
    tells of none.
    """
    _check_replaced(out, reported)
    names = []
    for name, figure in _pictures(reported.rows, plan).items():
        path = out.with_name(f"{out.stem}-{name}.png")
        drawing.save(figure, path)
        names.append(path.name)
    context = Context(
        plan, reported.command, reported.machine, reported.changed, reported.not_run, reported.failed, names
    )
    with atomic_write(out, durable=False) as temporary:  # the page is written again from the finished cells
        temporary.write_text(page(reported.rows, context), encoding="utf-8")
    write_json(out.with_suffix(".json"), reported.as_dict())


def _check_replaced(out: Path, reported: Comparison) -> None:
    try:
        before = sum(len(row["seeds"]) for row in orjson.loads(out.with_suffix(".json").read_bytes())["rows"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):  # no page of this command
        return
    now = sum(len(row.seeds) for row in reported.rows)
    if before and not now:
        raise BadInputError(
            f"{out} has {before} finished cells and this plan has none under its --work: give another --out, or"
            " delete the page"
        )
    if now < before:
        sys.stderr.write(f"note: {out} listed {before} finished cells; it is replaced by a page of {now}\n")


def _pictures(found: Sequence[TableRow], plan: AnyPlan) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    try:
        figures["broad-narrow"] = broad_against_narrow(found, plan.criteria)
        figures["criteria"] = criteria_matrix(found)
    except BadInputError:  # no finished cell yet: a page without pictures
        return figures
    sweep = ratio_sweep(found, plan.criteria)
    return figures if sweep is None else figures | {"ratio": sweep}


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_places(key): _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value
