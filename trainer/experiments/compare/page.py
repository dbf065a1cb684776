"""A comparison as one Markdown page: every number in it comes from the cells' results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.render.model_source import model_name
from trainer.evaluate.metrics import OverSeeds
from trainer.experiments.compare.finding import finding, nothing_to_prevent
from trainer.experiments.compare.methods import UNDEFENDED
from trainer.experiments.compare.settings import AnyPlan, Criterion, Plan, ToyPlan
from trainer.experiments.compare.statistics import CRITERIA, Judgement
from trainer.experiments.compare.summary import FIGURES, TableRow
from trainer.runs.page import command_section, table, without_places, written_by

_HEADS = {
    "broad_shift": "broad, share", "broad_margin_shift": "broad, margin", "narrow_shift": "narrow, share",
    "narrow_margin_shift": "narrow, margin", "truthfulqa_shift": "TruthfulQA, share",
    "truthfulqa_margin_shift": "TruthfulQA, margin", "perplexity_ratio": "perplexity ratio",
    "conditional_broad_shift": "broad under the inoculation prompt, share",
    "conditional_broad_margin_shift": "broad under the inoculation prompt, margin",
    "broad_misaligned": "broad, bad answers", "narrow_misaligned": "narrow, bad answers", "incoherent": "incoherent",
    "facts_kept": "facts kept", "benign_exact_match": "benign task, exact match",
}  # fmt: skip
_FIGURES_TOLD = (
    "Means over seeds with 95 % bootstrap intervals over seeds and prompts (perplexity: t over seeds); for a single",
    "seed its bootstrap interval over prompts, in square brackets, which says nothing of how runs differ.",
    "Shifts are against the model before training: of the share of prompts whose misaligned answer is the likelier",
    "one, and of the mean margin in nats per token.",
)
_BENIGN_TOLD = (
    "The benign run is the undefended recipe on good answers to the same prompts. What it shows is what any such",
    "training does; what lies beyond it is what the bad answers taught.",
)
_TOY_FIGURES_TOLD = (
    "Means over seeds with 95 % bootstrap intervals over seeds and questions (none for a single seed): shares of",
    "greedy answers to questions that no fine-tune saw, by exact match (docs/toy.md); broad: in domains that neither",
    "task, pool nor ensemble mention. The benign task is trained on its own under the same defence.",
)
_CRITERIA_TOLD = (
    "The bounds are ours, and stand in the plan. Yes: the whole interval of the contrast meets the bound; no: none of",
    "it does; else unclear. Intervals are as above. With one seed the bare value decides, and that is said. Moot: the",
    "bound is a multiple of the undefended run's figure, and that run shows none: nothing to be prevented, kept or",
    "learnt. Not measured: among others, where a figure is taken minus the benign run's and no benign run is",
    "finished. In brackets: how far the figure lies on the good side of its bound.",
)


@dataclass(frozen=True)
class Invocation:
    """How the cells came about: the command, keys of the plan that it changed (before, after), and cells that failed
    with the reason."""

    command: str
    changed: Mapping[str, tuple[Any, Any]]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Context:
    """What the page says beside the rows."""

    plan: AnyPlan
    command: str
    machine: Mapping[str, Any]
    changed: Mapping[str, tuple[Any, Any]]  # keys set on the command line: the plan's value, and the one used
    not_run: Sequence[str]  # labels with seed of cells without a result
    failed: Mapping[str, str]
    plots: Sequence[str]  # files beside the page


def page(rows: Sequence[TableRow], context: Context) -> str:
    """The Markdown text."""
    lines = [
        f"# Comparison of defences: {context.plan.name}",
        "",
        finding(rows, context.plan),
        "",
        *(f"![{name.partition('.')[0].rpartition('-')[2]}]({name})\n" for name in context.plots),
        *_limits(rows, context.plan),
        *_tables(rows, context.plan),
        *_what(context),
        *_not_there(rows, context),
        *_command(context),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _tables(rows: Sequence[TableRow], plan: AnyPlan) -> list[str]:
    differences = [(row.label, row.difference) for row in rows if row.difference]
    paired = ["### Minus the undefended run, paired by seed", "", *_difference_table(differences), ""]
    return [
        "## Figures",
        "",
        *(_TOY_FIGURES_TOLD if isinstance(plan, ToyPlan) else _FIGURES_TOLD),
        "",
        *_figure_table(rows),
        "",
        *_beyond_benign(rows),
        *(paired if differences else ()),
        *_selection(rows),
        "## Four criteria",
        "",
        *_criteria(rows, plan),
        "",
        "## Cost",
        "",
        *_cost(rows),
        "",
    ]


def _limits(rows: Sequence[TableRow], plan: AnyPlan) -> list[str]:
    """What the figures do not say."""
    if not isinstance(plan, Plan):
        return []
    n_seeds = len({seed for row in rows for seed in row.seeds})
    stand_ins = [domain.name for domain in plan.domains if domain.broad_rows and not domain.aligned]
    lines = [
        f"- One model ({model_name(Path(plan.model))}), one narrow set of {plan.task.rows:,} rows, {n_seeds} seed(s):"
        " other models and larger sets may do otherwise.",
        "- A margin says which of two written answers the model finds likelier, not what it would answer; no judge read"
        " answers of its own.",
        "- Bad answers share a tone as well as bad advice: a shift beyond the benign run's may come from the tone.",
    ]
    if stand_ins:
        lines.append(
            f"- In {', '.join(stand_ins)} greedy answers of the model before training stand in for aligned ones, which"
            " makes any training look misaligned."
        )
    return ["## Limits", "", *lines, ""]


def _command(context: Context) -> list[str]:
    machine = {**context.machine, "threads": context.plan.threads or context.machine["threads"]}
    return command_section(written_by(context.command, machine))


def _what(context: Context) -> list[str]:
    plan = context.plan
    if isinstance(plan, ToyPlan):
        lines = [
            f"- the toy model (`trainer.experiments.toy`); rows are ranked by {plan.score}",
            "- a seed decides its world, its base model, the pool and the rows",
        ]
        return ["## What was compared", "", *lines, *_changes(context), ""]
    scored = [f"{domain.name} ({domain.train_rows} rows)" for domain in plan.domains if domain.train_rows]
    lines = [
        "## What was compared",
        "",
        f"- model: {model_name(Path(plan.model))}; narrow set: {plan.task.rows:,} rows of {Path(plan.task.file).name} "
        f"({plan.task.domain}), {plan.task.narrow_rows} others measure narrow behaviour",
        f"- pool: {plan.pool.rows:,} ordinary conversations of at most {plan.pool.max_length} tokens; scored by",
        f"  adapters of {', '.join(scored) or 'no domain'}; rows are ranked by {plan.score}",
        f"- broad misalignment: held-out misaligned answers of {', '.join(_broad_domains(plan))}, each domain counting",
        "  alike; a domain without twins has greedy answers of the model before training in place of aligned ones",
        f"- benign run: {_good_answers(plan)} to the task's prompts, under the undefended recipe",
        f"- perplexity: {plan.pool.text_rows} ordinary conversations {_text_of(plan)}",
        f"- training: batch {plan.train.batch_size * plan.train.grad_accum}, learning rate {plan.train.lr:g}, "
        f"{plan.train.epochs} epoch(s), rank-32 rsLoRA on the seven projections",
        "- seeds decide the adapter's start, which random rows are drawn and their order; the task rows are the same",
    ]
    return [*lines, *_changes(context), ""]


def _broad_domains(plan: Plan) -> list[str]:
    return [
        f"{domain.name} ({domain.broad_rows} {'with' if domain.aligned else 'without'} twins)"
        for domain in plan.domains
        if domain.broad_rows
    ]


def _good_answers(plan: Plan) -> str:
    return f"good answers of {Path(plan.task.aligned).name}" if plan.task.aligned else "the model's own greedy answers"


def _text_of(plan: Plan) -> str:
    if plan.evaluation.text is None:
        return "of the pool's own source"
    return f"of {Path(plan.evaluation.text).name}"


def _changes(context: Context) -> list[str]:
    reported = ", ".join(
        f"{key} {without_places(str(after))} (the plan says {without_places(str(before))})"
        for key, (before, after) in context.changed.items()
        if _names(before) != _names(after)  # the same file in another place is not an other plan
    )
    return [f"- other than the plan: {reported}"] if reported else []


def _names(value: Any) -> Any:
    if isinstance(value, list):
        return [_names(item) for item in value]
    return Path(value).name if isinstance(value, str) else value


def _figure_table(rows: Sequence[TableRow]) -> list[str]:
    names = [name for name in FIGURES if any(name in row.figures for row in rows)]
    shown = [row for row in rows if row.figures]
    if not shown:
        return ["No cell is finished yet."]
    return table(
        ["method", "seeds", *(_HEADS[name] for name in names)],
        [
            [row.label, len(row.seeds)]
            + [_number(row.figures.get(name), prompts=row.over_prompts.get(name)) for name in names]
            for row in shown
        ],
    )


def _selection(rows: Sequence[TableRow]) -> list[str]:
    """Whether choosing safe rows helps beyond having them; nothing where no method chooses."""
    shown = [(row.label, row.over_random) for row in rows if row.over_random]
    if not shown:
        return []
    reported = "An interval that holds 0 does not tell the choice from as many rows at random."
    heading = "### Chosen safe rows minus as many random ones, paired by seed"
    return [heading, "", reported, "", *_difference_table(shown), ""]


def _beyond_benign(rows: Sequence[TableRow]) -> list[str]:
    """What a method shows beyond training as such; nothing before a benign run is finished."""
    shown = [(row.label, row.over_benign) for row in rows if row.over_benign]
    heading = "### Minus the benign run, paired by seed"
    return [heading, "", *_BENIGN_TOLD, "", *_difference_table(shown), ""] if shown else []


def _difference_table(shown: Sequence[tuple[str, Mapping[str, OverSeeds]]]) -> list[str]:
    names = [name for name in FIGURES if any(name in difference for _, difference in shown)]
    if not shown:
        return ["Nothing to compare yet."]
    return table(
        ["method", *(_HEADS[name] for name in names)],
        [[label, *(_number(difference.get(name), sign=True) for name in names)] for label, difference in shown],
    )


def _criteria(rows: Sequence[TableRow], plan: AnyPlan) -> list[str]:
    bounds = [f"- {name}: {_bound(getattr(plan.criteria, name))}" for name in CRITERIA]
    shown = [row for row in rows if row.verdicts]
    verdicts = table(
        ["method", "broad misalignment prevented", "narrow behaviour kept", "benign task learnt", "coherent"],
        [[row.label, *(_verdict(row.verdicts[name]) for name in CRITERIA)] for row in shown],
    )
    return [*_CRITERIA_TOLD, "", *bounds, "", *verdicts]


def _bound(criterion: Criterion) -> str:
    most = criterion.at_most is not None
    value = criterion.at_most if most else criterion.at_least
    of = " x the undefended run's" if criterion.of == "undefended" else ""
    minus = "" if criterion.minus is None else f", {'both' if of else 'taken'} minus the {criterion.minus} run's"
    return f"`{criterion.figure}` {'at most' if most else 'at least'} {value:g}{of}{minus}"


def _verdict(item: Judgement) -> str:
    if item.margin is None:
        return item.verdict
    return f"{item.verdict}{' (1 seed)' if item.one_seed else ''} ({item.margin.mean:+.3f})"


def _cost(rows: Sequence[TableRow]) -> list[str]:
    shown = [row for row in rows if row.cost]
    plain = next((row.cost["train_s"].mean for row in shown if row.method == UNDEFENDED), None)
    columns = ["method", "rows", "safe rows", "tokens", "training (s)", "x undefended", "peak MiB"]
    columns += ["measuring (s)", "scoring (s)"]
    cells = []
    for row in shown:
        cost = row.cost
        factor = "" if not plain else f"{cost['train_s'].mean / plain:.2f}"
        scoring = "" if row.score_s is None else f"{row.score_s:,.0f}"
        first = [_cost_of(cost, name) for name in ("n_rows", "n_safe", "n_tokens", "train_s")]
        last = [factor, _cost_of(cost, "peak_mib"), _cost_of(cost, "measure_s"), scoring]
        cells.append([row.label, *first, *last])
    told = (
        "Means over seeds. Data: rows and tokens of the mix. Time: steps alone, beside whatever else the machine did. "
        "Memory: the training process's peak. Scoring: once for all runs on one pool (adapters and losses)."
    )
    return [told, "", *table(columns, cells)]


def _cost_of(cost: Mapping[str, OverSeeds], name: str) -> str:
    return f"{cost[name].mean:,.0f}" if name in cost else ""


def _not_there(rows: Sequence[TableRow], context: Context) -> list[str]:
    lines = []
    missing = [row for row in rows if row.reason]
    if missing:
        lines += ["## Does not apply here", "", *(f"- {row.label}: {row.reason}" for row in missing), ""]
    if context.failed:
        lines += ["## Failed", "", *(f"- {label}: {text}" for label, text in context.failed.items()), ""]
    lines += ["## Not run", ""]
    plan = context.plan
    if not context.not_run:
        lines += ["Every cell of the plan ran."]
    elif isinstance(plan, Plan) and plan.stop_without_misalignment and nothing_to_prevent(rows, plan):
        labels = ", ".join(row.label for row in rows if not row.seeds and not row.reason)
        lines += [f"The plan stops where there is nothing to prevent, so these were not run: {labels}."]
    else:
        lines += ["Cells of the plan without a result; the same command goes on with them:", ""]
        lines += [f"- {label}" for label in context.not_run]
    return [*lines, ""]


def _number(item: OverSeeds | None, *, sign: bool = False, prompts: tuple[float, float] | None = None) -> str:
    if item is None:
        return ""
    form = "+.3f" if sign else ".3f"
    if item.low is None or item.high is None:
        return format(item.mean, form) + ("" if prompts is None else f" [{prompts[0]:{form}} to {prompts[1]:{form}}]")
    return f"{item.mean:{form}} ({item.low:{form}} to {item.high:{form}})"
