"""What a comparison found, in a sentence: whether there is misalignment to prevent, and which methods prevent it."""

from collections.abc import Sequence

from trainer.evaluate.metrics import OverSeeds
from trainer.experiments.compare.methods import CONTROL, UNDEFENDED
from trainer.experiments.compare.settings import AnyPlan, Criterion, Plan
from trainer.experiments.compare.statistics import is_shown
from trainer.experiments.compare.summary import TableRow

_NO_CELL = "No cell is finished yet."
# Said where no benign run is finished.
_CAUTION = (
    "**Without a benign run beside it this page shows neither emergent misalignment nor its prevention.** Shifts"
    " compare misaligned answers with aligned ones, and any training moves them, one on good advice too. Read the"
    " figures as cost and as differences between methods."
)


def judged_figure(row: TableRow, criterion: Criterion) -> OverSeeds | None:
    """The figure that a criterion judges: as it is, or minus the benign run's."""
    found = row.figures if criterion.minus is None else row.over_benign
    return found.get(criterion.figure)


def nothing_to_prevent(rows: Sequence[TableRow], plan: AnyPlan) -> bool:
    """Whether the undefended run's broad figure is not above 0 with its whole interval; False for fewer than two seeds,
    which have none."""
    found = _broad(rows, plan)
    return found is not None and found.low is not None and not is_shown(found)


def finding(rows: Sequence[TableRow], plan: AnyPlan) -> str:
    """The first sentence of the page."""
    if not any(row.figures for row in rows):
        return _NO_CELL
    if not isinstance(plan, Plan):
        return f"On the toy model {all_met(rows)}."
    if not any(row.method == CONTROL and row.figures for row in rows):
        return _CAUTION
    found = _broad(rows, plan)
    if found is None:
        return "The undefended run is not finished yet."
    moved = (
        f"bad answers about {plan.task.domain} moved the model towards bad answers in {_domains(plan)} by"
        f" {_amount(found, plan.criteria.broad)} beyond what good answers to the same prompts did"
    )
    if found.low is None:
        return f"One seed decides nothing: {moved}."
    if not is_shown(found):
        return f"No emergent misalignment was seen, so there was nothing to prevent: {moved}."
    return f"There is misalignment to prevent: {moved} (part of it may be tone); {all_met(rows)}.{_chosen(rows, plan)}"


def _chosen(rows: Sequence[TableRow], plan: Plan) -> str:
    """Whether safe rows that were chosen did better than as many random ones; empty where that is not measured."""
    figure = plan.criteria.broad.figure
    found = [(row.label, row.over_random[figure]) for row in rows if figure in row.over_random]
    told = [
        f"{label} {_amount(item, plan.criteria.broad)}"
        + (", no clear difference" if item.low is None or item.high is None or item.low <= 0 <= item.high else "")
        for label, item in found
    ]
    if not told:
        return ""
    return f" Safe rows that were chosen, minus as many random ones (below 0 is better): {'; '.join(told)}."


def all_met(rows: Sequence[TableRow]) -> str:
    """Which methods meet all criteria that were measured of any run; the undefended run is no method."""
    measured = {
        row.label: [item.verdict for item in row.verdicts.values() if item.verdict not in ("not measured", "moot")]
        for row in rows
        if row.verdicts
    }
    n = max(map(len, measured.values()), default=0)
    shown = {row.label: measured[row.label] for row in rows if row.verdicts and row.method != UNDEFENDED}
    if not shown:
        return "no defence is measured yet"
    met = [label for label, found in shown.items() if found == ["yes"] * n and n]
    if not met:
        return f"no method of {len(shown)} meets all {n} measured criteria"
    named = ", ".join(met) if len(met) <= 3 else f"{len(met)} of {len(shown)} methods"
    return f"{named} meet{'s' if len(met) == 1 else ''} all {n} measured criteria"


def _broad(rows: Sequence[TableRow], plan: AnyPlan) -> OverSeeds | None:
    return next((judged_figure(row, plan.criteria.broad) for row in rows if row.method == UNDEFENDED), None)


def _domains(plan: Plan) -> str:
    names = [domain.name for domain in plan.domains if domain.broad_rows]
    return names[0] if len(names) == 1 else f"{len(names)} other domains"


def _amount(item: OverSeeds, criterion: Criterion) -> str:
    unit = "nats per token of margin" if "margin" in criterion.figure else "of the prompts"
    interval = "" if item.low is None or item.high is None else f" (95 % interval {item.low:+.3f} to {item.high:+.3f})"
    return f"{item.mean:+.3f} {unit}{interval}"
