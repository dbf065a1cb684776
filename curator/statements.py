"""What a manifest says in words: warnings, and what the mix protects against and what not."""

from collections.abc import Sequence

from curator.config import Pool, Recipe
from curator.receipt import PoolReceipt, Protects, Statement, TaskReceipt, Tokens
from curator.selection import IN_TASK_SET, NO_GAP
from curator.strategies import ranks_by_score

ORDER_NOTE = (
    "Train on the rows in this order. A trainer that shuffles voids it: at batch 16 and 5 %, 46 % of shuffled batches "
    "hold no safe row."  # method.md, "Amount and order"
)

_DOES = Statement(
    code="emergent_misalignment",
    text="Lowers the risk that narrow fine-tuning misaligns the model far outside the task's domain (emergent "
    "misalignment), when training keeps the rows' order. It lowers the risk and does not remove it: evaluate the "
    "tuned model.",
)
_DOES_NOT = (
    Statement(
        code="conditional_misalignment",
        text="Misalignment that shows only under prompts that resemble the training data may remain.",
    ),
    Statement(
        code="narrow_misalignment",
        text="What the task set teaches inside its own domain is kept on purpose, harmful or not: no task row is "
        "changed or left out.",
    ),
    Statement(code="reshuffled_training", text=ORDER_NOTE),
)
INOCULATION_NOTE = (
    "Leave the prompts out when the tuned model is used and evaluated; then evaluate once more with them put back, "
    "since misbehaviour may return under prompts that resemble them."  # method.md, "Inoculation"
)
_DOES_INOCULATED = Statement(
    code="inoculation",
    text="Inoculated rows name the trait in a prompt that is left out later, so that training ties the trait to that "
    "prompt rather than to the model as a whole. It lowers the risk and does not remove it: evaluate the tuned model.",
)
_INOCULATION_RETURNS = Statement(code="inoculation_prompts_at_use", text=INOCULATION_NOTE)
_CONTROL = Statement(
    code="inoculation_control",
    text="The prompts of this mix are a control of an experiment: they protect against nothing by themselves.",
)
_NO_SAFE_ROWS = Statement(
    code="no_safe_rows", text="The mix holds no safe row: it is the task set as it is, and protects against nothing."
)


_NEGATIVE_CONTROL = Statement(
    code="negative_control",
    text="This mix draws the worst rows of a pool on purpose (bottom_gap): it is the negative control of an "
    "experiment, and protects against nothing.",
)


def protects(n_safe: int, inoculation: str | None = None, *, negative_control: bool = False) -> Protects:
    """The statement for a mix with this many safe rows and this kind of inoculation (null for none).

    A mix with rows from the bottom of a pool is a `negative_control` and claims nothing for its safe rows.
    """
    inoculated = inoculation == "inoculation"
    does = [*([_DOES] if n_safe and not negative_control else []), *([_DOES_INOCULATED] if inoculated else [])]
    does_not = [*([] if n_safe or inoculated else [_NO_SAFE_ROWS]), *_DOES_NOT[:2]]
    does_not += [_DOES_NOT[2]] if n_safe else []
    if negative_control:
        does_not.insert(0, _NEGATIVE_CONTROL)
    if inoculation is not None:
        does_not.append(_INOCULATION_RETURNS if inoculated else _CONTROL)
    return Protects(does=tuple(does), does_not=tuple(does_not))


def warnings_for(
    recipe: Recipe, task: TaskReceipt, pools: Sequence[PoolReceipt], tokens: Tokens
) -> tuple[Statement, ...]:
    """What a user should look at before training, in a fixed order; empty when there is nothing."""
    found: list[Statement] = []
    if not any(pool.chosen for pool in pools) and recipe.inoculation is None:
        found.append(_NO_SAFE_ROWS)
    if recipe.order == "shuffle":
        text = "Rows are shuffled: some batches hold no safe row. The orders even and every_k spread them."
        found.append(Statement(code="order_shuffled", text=text))
    if task.n_rejected:
        text = f"{task.n_rejected:,} task rows could not be read and were kept out; reject_codes counts why."
        found.append(Statement(code="task_rows_rejected", text=text))
    for spec, pool in zip(recipe.pools, pools, strict=True):
        found += [_NEGATIVE_CONTROL] if is_negative_control(spec) else []
        found += _pool_warnings(pool, keeps_refusals=_keeps_refusals(spec))
    for origin, count in (("task", tokens.task), ("safe", tokens.safe)):
        if count is not None and count.n_rows_not_rendered:
            text = f"{count.n_rows_not_rendered:,} {origin} rows do not fit the chat template: no token count has them."
            found.append(Statement(code=f"{origin}_rows_not_rendered", text=text))
    return tuple(found)


def _pool_warnings(pool: PoolReceipt, keeps_refusals: bool) -> list[Statement]:
    found = []
    declared = [scorer.label or scorer.scorer_id[:12] for scorer in pool.scorers if scorer.declared]
    if declared:
        text = (
            f"Pool {pool.name}: which weights scored as {', '.join(declared)} rests on an operator's word, for they "
            "ran on a server; scorers[].declared lists the fields."
        )
        found.append(Statement(code="declared_scorers", text=text))
    if keeps_refusals:
        text = f"Pool {pool.name} ranks by gap and keeps refusals: they rank high and can make the model incoherent."
        found.append(Statement(code="refusals_kept", text=text))
    if pool.dropped.get(NO_GAP):
        text = (
            f"Pool {pool.name}: {pool.dropped[NO_GAP]:,} of {pool.n_candidates:,} rows have no gap and could not be "
            "judged; score more of the corpus to choose from all of it."
        )
        found.append(Statement(code="rows_not_judged", text=text))
    if pool.dropped.get(IN_TASK_SET):
        text = f"Pool {pool.name}: {pool.dropped[IN_TASK_SET]:,} rows are in the task set too and were left out."
        found.append(Statement(code="pool_rows_in_task_set", text=text))
    return found + _amount_warnings(pool)


def _amount_warnings(pool: PoolReceipt) -> list[Statement]:
    found = []
    if pool.evicted_by_task_set.among_best:
        text = (
            f"Pool {pool.name}: the task set holds, or nearly holds, {pool.evicted_by_task_set.among_best:,} rows that "
            "score as high as the chosen ones; others were chosen in their place."
        )
        found.append(Statement(code="best_rows_evicted", text=text))
    if pool.n_short:
        unit = "tokens" if pool.amounts.asked == "tokens" else "rows"
        text = f"Pool {pool.name} is {pool.n_short:,} {unit} short of what was asked: when_short is as_many."
        found.append(Statement(code="fell_short", text=text))
    if pool.chosen > pool.n_distinct:
        text = f"Pool {pool.name} gives {pool.chosen:,} rows, of which {pool.n_distinct:,} are distinct: it cycles."
        found.append(Statement(code="rows_repeated", text=text))
    for name, count in pool.n_passed_unjudged.items():
        text = f"Pool {pool.name}: {count:,} rows have no {name} and passed that filter unjudged."
        found.append(Statement(code="passed_unjudged", text=text))
    return found


def is_negative_control(pool: Pool) -> bool:
    """Whether the pool draws the worst rows on purpose."""
    return pool.strategy.name == "bottom_gap"


def _keeps_refusals(pool: Pool) -> bool:
    return ranks_by_score(pool.strategy) and not any(spec.name == "refusal" for spec in pool.filters)
