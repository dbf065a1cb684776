"""`python -m trainer.experiments.compare`: run the grid of a plan, cell by cell, and write its page."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curator.console import CommandParser, add_renamed, run_command, say, say_json
from curator.errors import BadInputError
from curator.render.model_source import locate_model
from curator.scoring.identity import check_model_dir, weights_sha256
from trainer.experiments.compare.cells import (
    RESULT,
    Cell,
    controls,
    grid,
    read_result,
    results,
)
from trainer.experiments.compare.contents import check_cells_found, with_contents
from trainer.experiments.compare.finding import nothing_to_prevent
from trainer.experiments.compare.page import Invocation
from trainer.experiments.compare.run_cell import run_cell
from trainer.experiments.compare.settings import (
    PRESETS,
    AnyPlan,
    Plan,
    read_plan,
)
from trainer.experiments.compare.shared import Shared
from trainer.experiments.compare.summary import rows
from trainer.experiments.grid import open_cells
from trainer.plans.commands import CommandError
from trainer.runs.page import shown_command

DESCRIPTION = """\
Trains one model on one narrow set under each defence and writes the table: broad misalignment prevented, narrow
behaviour kept, benign task learnt, coherent, and cost, with intervals over seeds.

A cell is one method, ratio and seed; its folder gets result.json last. Stop it at any moment and start it again:
finished cells are skipped, training goes on from its checkpoint. Several such commands may share one --work folder."""

EPILOG = """\
examples:
  python -m trainer.experiments.compare --plan laptop --override model=DIR --work runs/compare --out compare.md
  python -m trainer.experiments.compare --plan laptop --override model=DIR --override seeds=[0] --work runs/small
  python -m trainer.experiments.compare --plan mine.yaml --work runs/mine --list   (the cells, and which are finished)
  python -m trainer.experiments.compare --plan mine.yaml --work runs/mine --page-only --out page.md

plans: laptop (SmolLM2-135M, two cores), gpu (all rows, every method), toy (docs/toy.md; no model needed).
docs/compare.md describes every key.
Exit codes: 0 done or stopped by --limit-minutes, 1 a cell failed (the others ran), 2 bad input, 130 Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, list or sum up."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    return run_command(lambda given: _command(given, arguments), args)


def _command(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    plan, changed = read_plan(args.plan, args.override)
    if isinstance(plan, Plan):
        model, weights = _model(plan.model, needed=not args.page_only)
        found = {"model": str(model), "weights_sha256": weights}
        plan = with_contents(plan, needed=not args.page_only).model_copy(update=found)
    cells = grid(plan)
    if args.page_only and isinstance(plan, Plan):
        check_cells_found(plan, results(cells, args.work, plan), args.work)
    if args.list:
        return _list(cells, args.work, plan, as_json=args.json)
    failed: dict[str, str] = {}
    shared = Shared.of(args.work, plan) if isinstance(plan, Plan) else None
    if not args.page_only:
        failed = _run(cells, args.work, plan, shared, args.limit_minutes)
    command = shown_command("trainer.experiments.compare", arguments)
    return _finish(args, plan, cells, shared, Invocation(command, changed, failed))


def _model(source: str, *, needed: bool) -> tuple[str | Path, str | None]:
    """The model's folder and hash. The hash is part of every cell's folder name; a page can be written without the
    model only if its cells were."""
    try:
        model = locate_model(source)
    except BadInputError:
        if needed:
            raise
        return source, None
    if not needed and not model.exists():
        return source, None
    check_model_dir(model)
    return model, weights_sha256(model)


def _run(
    cells: Sequence[Cell], work: Path, plan: AnyPlan, shared: Shared | None, limit_min: float | None
) -> dict[str, str]:
    """Run every cell without a result, in order; returns the reason of each that failed.

    With `stop_without_misalignment` the undefended and the benign runs come first, and the other methods only where
    these show something to prevent.
    """
    began = time.monotonic()

    def left() -> float | None:
        return None if limit_min is None else limit_min - (time.monotonic() - began) / 60

    if isinstance(plan, Plan) and plan.stop_without_misalignment:
        first = controls(cells)
        failed = _run_each(first, work, plan, shared, left())
        found = results(cells, work, plan)
        if failed or any(read_result(cell.folder(work, plan)) is None for cell in first):
            return failed
        if nothing_to_prevent(rows(cells, found, plan, None), plan):
            say("the undefended and the benign runs show no misalignment to prevent: no other method is run")
            return {}
    return _run_each(cells, work, plan, shared, left())


def _run_each(
    cells: Sequence[Cell], work: Path, plan: AnyPlan, shared: Shared | None, limit_min: float | None
) -> dict[str, str]:
    failed = {}
    if shared is not None and any(read_result(cell.folder(work, plan)) is None for cell in cells):
        shared.make(list({cell.method.name: cell.method for cell in cells}.values()))
    for turn in open_cells(cells, lambda cell: cell.folder(work, plan) / RESULT, _name, limit_min=limit_min):
        began = time.monotonic()
        try:
            document = run_cell(turn.cell, work, plan, shared, turn.lock)
        except CommandError as error:
            failed[_name(turn.cell)] = error.message
            sys.stderr.write(f"error: {_name(turn.cell)}: {error.message}\n")
            continue
        say(f"{_name(turn.cell)}: {_told(document, plan)} ({time.monotonic() - began:.0f} s; cell {turn.number} of"
            f" {turn.n_cells}, about {turn.left_min():.0f} minutes left)")  # fmt: skip
    return failed


def _name(cell: Cell) -> str:
    return f"{cell.label}, seed {cell.seed}"


def _told(document: dict[str, Any], plan: AnyPlan) -> str:
    if document["status"] != "done":
        return str(document["status"])
    names = [plan.criteria.broad.figure, plan.criteria.narrow.figure]
    return ", ".join(f"{name} {document['figures'][name]:+.3f}" for name in names if name in document["figures"])


def _list(cells: Sequence[Cell], work: Path, plan: AnyPlan, *, as_json: bool) -> int:
    found = [
        {
            "method": cell.method.name, "ratio": cell.ratio, "seed": cell.seed,
            "status": "open" if result is None else result["status"], "folder": str(cell.folder(work, plan)),
        }
        for cell, result in zip(cells, results(cells, work, plan), strict=True)
    ]  # fmt: skip
    if as_json:
        say_json({"cells": found})
        return 0
    for item in found:
        ratio = "" if item["ratio"] is None else f" at {100 * item['ratio']:g} %"
        say(f"{item['status']:<22}{item['method']}{ratio}, seed {item['seed']}")
    return 0


def _finish(
    args: argparse.Namespace, plan: AnyPlan, cells: Sequence[Cell], shared: Shared | None, invocation: Invocation
) -> int:
    # Loads torch (for the machine's description) and matplotlib.
    from trainer.experiments.compare.write import document, write_page

    reported = document(plan, cells, results(cells, args.work, plan), shared, invocation)
    out = args.out or args.work / "compare.md"
    write_page(out, reported, plan)
    if args.json:
        say_json(reported.as_dict())
    else:
        say(f"page: {out}")
    return 1 if invocation.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.experiments.compare", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--plan", required=True, metavar="NAME|FILE", help=f"a preset ({', '.join(PRESETS)}) or a YAML file")
    add_renamed(
        parser,
        "--override",
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the plan, such as task.rows=240",
    )
    add("--work", type=Path, required=True, metavar="DIR", help="folder of cells and of what they share")
    add("--out", type=Path, metavar="FILE", help="Markdown page; JSON and PNG go beside it (default: WORK/compare.md)")
    add("--list", action="store_true", help="say which cells there are and which are finished, and run nothing")
    add("--page-only", action="store_true", help="write the page from finished cells, and run nothing")
    add("--limit-minutes", type=float, metavar="M", help="begin no cell after so many minutes")
    add("--json", action="store_true", help="print the whole result as one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
