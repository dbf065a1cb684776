"""Filling in a mix's manifest from its plan and from what was written.

What a manifest says in words: warnings, and what the mix protects against and what not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from curator.console import product_version
from curator.corpus.manifest import Scorer
from curator.corpus.task_set import TaskSet
from curator.mix.identity import ratio_of
from curator.mix.inoculation import prompts
from curator.mix.manifest import (
    Amounts,
    Evictions,
    InoculationReceipt,
    LabelShare,
    Manifest,
    OrderReceipt,
    PolicyReceipt,
    PoolReceipt,
    PromptReceipt,
    Protects,
    Quantiles,
    ScorerRef,
    Statement,
    TaskReceipt,
    Tokens,
)
from curator.mix.order import Allocation, Schedule, keeps_task_order
from curator.mix.plan import Drawn, MixPlan
from curator.mix.resolve import PoolData
from curator.mix.writer import Written
from curator.query.gaps import NO_SIGNAL
from curator.recipe import Pool, Recipe
from curator.recipe.policy import Policy, policy_sha256
from curator.recipe.strategies import needs_score, ranks_by_score
from curator.select.candidates import TOKENS
from curator.select.filters import NO_GAP
from curator.select.pool import score_quantiles
from curator.select.select import IN_TASK_SET
from curator.store.schema import MIX_FORMAT_VERSION

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


LOW_TOKEN_SHARE = 0.5  # of the safe rows' share in rows: below it, most of their weight in training is missing

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
        is_control = is_negative_control(spec)
        found += [_NEGATIVE_CONTROL] if is_control else []
        found += _pool_warnings(pool, keeps_refusals=_keeps_refusals(spec))
        found += _signal_warnings(pool) if needs_score(spec.strategy) else []
        found += _below_zero_warnings(pool) if ranks_by_score(spec.strategy) and not is_control else []
    for origin, count in (("task", tokens.task), ("safe", tokens.safe)):
        if count is not None and count.n_rows_not_rendered:
            text = f"{count.n_rows_not_rendered:,} {origin} rows do not fit the chat template: no token count has them."
            found.append(Statement(code=f"{origin}_rows_not_rendered", text=text))
    n_chosen = sum(pool.chosen for pool in pools)
    return (*found, *token_share_warnings(n_chosen / (n_chosen + task.n_rows), tokens))


def token_share_warnings(row_share: float, tokens: Tokens) -> list[Statement]:
    """Whether the safe rows' share in trained tokens is below `LOW_TOKEN_SHARE` of their share in rows.

    Nothing where tokens are not counted: no share is known before a training renders the rows.
    """
    if tokens.task is None or tokens.safe is None:
        return []
    text = low_token_share(row_share, tokens.safe.response, tokens.task.response)
    return [] if text is None else [Statement(code="low_token_share", text=text)]


def low_token_share(row_share: float, n_safe_tokens: int, n_task_tokens: int) -> str | None:
    """What to say of safe rows whose share in trained tokens is below `LOW_TOKEN_SHARE` of their share in rows; None
    where it is not."""
    if not n_task_tokens:
        return None
    share = n_safe_tokens / (n_safe_tokens + n_task_tokens)
    if share >= LOW_TOKEN_SHARE * row_share:
        return None
    return (
        f"Safe rows are {100 * row_share:.3g} % of the rows but {100 * share:.3g} % of the trained tokens, less than "
        "half of that: their answers are short beside the task's, and weigh little in training. Ask for an amount in "
        "tokens, or for longer answers (filter length with min_tokens)."
    )


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


def _signal_warnings(pool: PoolReceipt) -> list[Statement]:
    """Whether the gap tells the pool's rows apart: if not, a choice by it is close to one at random."""
    found, chosen = pool.quantiles["candidates"], pool.quantiles["chosen"]
    if found is None or chosen is None:
        return []
    if found.p95 - found.p05 >= NO_SIGNAL or abs(chosen.p50 - found.p50) >= NO_SIGNAL:
        return []
    text = (
        f"Pool {pool.name}: {pool.score} carries no signal. Nine in ten candidates have one between {found.p05:.3g} "
        f"and {found.p95:.3g}, and the chosen rows' median ({chosen.p50:.3g}) is that of all ({found.p50:.3g}) within "
        f"{NO_SIGNAL:g}: misaligned and aligned models find the rows equally likely, so the choice is close to one at "
        "random. See whether the misaligned models learnt their bad answers, and whether each was scored with its "
        "adapter."
    )
    return [Statement(code="no_signal", text=text)]


def _below_zero_warnings(pool: PoolReceipt) -> list[Statement]:
    """Whether rows were chosen as safe that the misaligned models find likelier."""
    chosen = pool.quantiles["chosen"]
    if chosen is None or chosen.min >= 0:
        return []
    which = "all" if chosen.max < 0 else "some"
    than = "their benign twins do" if pool.score == "gap_contrast" else "the aligned model does"
    text = (
        f"Pool {pool.name}: {which} of the {pool.chosen:,} chosen rows have a {pool.score} below 0: the misaligned "
        f"models find them likelier than {than}, so they are no evidence of safety."
    )
    return [Statement(code="gap_below_zero", text=text)]


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
        what = "count of response tokens" if name == "length" else name  # characters are always counted
        text = f"Pool {pool.name}: {count:,} rows have no {what} and passed the filter {name} unjudged."
        found.append(Statement(code="passed_unjudged", text=text))
    return found


def is_negative_control(pool: Pool) -> bool:
    """Whether the pool draws the worst rows on purpose."""
    return pool.strategy.name == "bottom_gap"


def _keeps_refusals(pool: Pool) -> bool:
    return ranks_by_score(pool.strategy) and not any(spec.name == "refusal" for spec in pool.filters)


def describe(
    plan: MixPlan,
    task_set: TaskSet,
    order: Schedule,
    written: Written,
    tokens: Tokens,
    prompt_counts: Mapping[str, Mapping[str, int]] | None = None,
) -> Manifest:
    """The manifest of a mix; holds no clock and no path, so the same request gives the same document.

    `prompt_counts` are rows of an epoch by prompt label and origin (`row_prompts.count_prompts`).
    """
    pools = tuple(pool_receipt(drawn, plan.allocation) for drawn in plan.drawn)
    made = Made(plan.mix_id, plan.recipe, plan.allocation, pools, policy_receipt(plan.policy))
    return describe_made(made, task_set, order, written, tokens, prompt_counts or {})


@dataclass(frozen=True)
class Made:
    """What a mix was decided to be, its pools described by their receipts."""

    mix_id: str
    recipe: Recipe
    allocation: Allocation
    pools: tuple[PoolReceipt, ...]
    policy: PolicyReceipt | None


def describe_made(
    made: Made,
    task_set: TaskSet,
    order: Schedule,
    written: Written,
    tokens: Tokens,
    prompt_counts: Mapping[str, Mapping[str, int]],
) -> Manifest:
    """The same where the pools were drawn elsewhere."""
    recipe, allocation, pools = made.recipe, made.allocation, made.pools
    task = _task_receipt(task_set)
    inoculation = _inoculation_receipt(recipe, prompt_counts)
    return Manifest(
        mix_id=made.mix_id,
        format_version=MIX_FORMAT_VERSION,
        product_version=product_version(),
        recipe=recipe,
        task=task,
        pools=pools,
        n_rows=len(order),
        n_safe=allocation.n_safe_total * allocation.epochs,
        ratio=ratio_of(allocation, order, tokens.task, tokens.safe),
        tokens=tokens,
        order=_order_receipt(recipe, allocation),
        inoculation=inoculation,
        policy=made.policy,
        rows_sha256=written.rows_sha256,
        files=(written.file,),
        warnings=warnings_for(recipe, task, pools, tokens),
        protects=protects(
            allocation.n_safe_total,
            None if inoculation is None else inoculation.kind,
            negative_control=any(is_negative_control(pool) for pool in recipe.pools),
        ),
    )


def _task_receipt(task_set: TaskSet) -> TaskReceipt:
    return TaskReceipt(
        n_rows=task_set.n_rows,
        sha256=task_set.sha256,
        sources_sha256=task_set.sources_sha256,
        n_rejected=task_set.n_rejected,
        reject_codes=task_set.reject_codes,
    )


def _order_receipt(recipe: Recipe, allocation: Allocation) -> OrderReceipt:
    return OrderReceipt(
        name=recipe.order,
        seed=recipe.seed,
        every_k=allocation.k,
        batch_size=recipe.batch_size,
        safe_per_batch=None if allocation.batch is None else allocation.batch.n_safe,
        epochs=recipe.epochs,
        epoch_order=recipe.epoch_order,
        keeps_task_order=keeps_task_order(allocation, recipe.order),
        note=ORDER_NOTE,
    )


def _inoculation_receipt(recipe: Recipe, counts: Mapping[str, Mapping[str, int]]) -> InoculationReceipt | None:
    spec = recipe.inoculation
    if spec is None:
        return None
    found = [(prompt, counts.get(prompt.label, {})) for prompt in prompts(spec)]
    return InoculationReceipt(
        name=spec.name,
        kind=spec.kind,
        spec=spec,
        prompts=tuple(
            PromptReceipt(label=prompt.label, text=prompt.text, n_task=own.get("task", 0), n_safe=own.get("safe", 0))
            for prompt, own in found
        ),
        clean_system_prompt=spec.clean_prompt,
        note=INOCULATION_NOTE,
    )


def policy_receipt(policy: Policy | None) -> PolicyReceipt | None:
    """What a manifest shows of the policy; None without one."""
    return None if policy is None else PolicyReceipt(name=policy.name, sha256=policy_sha256(policy), policy=policy)


def pool_receipt(drawn: Drawn, allocation: Allocation) -> PoolReceipt:
    """The receipt of one pool of a mix with these counts."""
    data, selection = drawn.data, drawn.selection
    scores, refuses, chosen = data.candidates.scores, data.candidates.column("refusal_v1"), selection.chosen
    labels = data.table.columns("domain", "license").select(pl.all().gather(pl.Series(chosen)))
    return PoolReceipt(
        name=drawn.name,
        corpus=data.pool.corpus,
        revision=data.pool.revision,
        candidates_sha256=data.candidates_sha256,
        scorers=tuple(_scorer_ref(scorer) for scorer in data.scorers.all),
        n_candidates=len(data.candidates),
        n_without_gap=int((~scores.known).sum()),
        dropped=selection.result.dropped,
        n_eligible=selection.n_eligible,
        chosen=len(chosen),
        amounts=_amounts(drawn, allocation),
        n_distinct=selection.n_distinct,
        n_short=selection.n_short,
        n_passed_unjudged=selection.result.n_unjudged,
        score=data.pool.score.name,
        quantiles={"candidates": _pool_quantiles(data), "chosen": _quantiles(score_quantiles(scores.at(chosen)))},
        refusal_share={
            "candidates": _refusal_share(refuses),
            "chosen": _refusal_share(refuses.gather(chosen)),
        },
        domains=_label_shares(labels["domain"]),
        licences=_label_shares(labels["license"]),
        evicted_by_task_set=Evictions(rows=selection.evicted.rows, among_best=selection.evicted.among_best),
    )


def _pool_quantiles(data: PoolData) -> Quantiles | None:
    """Quantiles of the score over all candidates; the pool's file has those of the usual score."""
    return _quantiles(data.table.quantiles if data.choice.is_column else score_quantiles(data.candidates.scores.column))


def _quantiles(values: Mapping[str, float] | None) -> Quantiles | None:
    return None if values is None else Quantiles.model_validate(values)


def _amounts(drawn: Drawn, allocation: Allocation) -> Amounts:
    pool, chosen = drawn.data.pool, drawn.selection.chosen
    tokens = drawn.data.candidates.column(TOKENS).gather(chosen).cast(pl.Int64)
    return Amounts(
        asked=pool.amount,
        asked_value=getattr(pool, pool.amount),
        interleave_ratio=len(chosen) / allocation.n_task,
        mix_share=len(chosen) / allocation.n_epoch_rows,
        rows=len(chosen),
        tokens=None if tokens.null_count() else int(tokens.sum()),
    )


def _refusal_share(refuses: pl.Series) -> float | None:
    """Share of answers that open like a refusal, rule v1; None without any."""
    return int(refuses.sum()) / len(refuses) if len(refuses) else None


def _label_shares(labels: pl.Series) -> tuple[LabelShare, ...]:
    """Rows by label, most frequent first, then by label, null last."""
    counts = labels.cast(pl.String).alias("value").value_counts(name="n_rows")
    ranked = counts.sort("n_rows", "value", descending=[True, False], nulls_last=True)
    return tuple(LabelShare(value=value, n_rows=n, share=n / len(labels)) for value, n in ranked.iter_rows())


def _scorer_ref(scorer: Scorer) -> ScorerRef:
    return ScorerRef(
        scorer_id=scorer.scorer_id,
        role=scorer.role,
        domain=scorer.domain,
        label=scorer.label,
        weights_sha256=scorer.identity.get("weights_sha256"),
        adapter_sha256=scorer.identity.get("adapter_sha256"),
        sample=dict(scorer.sample) if scorer.sample else None,
        declared=tuple(scorer.identity.get("declared", ())),
        adapter_mode=scorer.identity.get("adapter_mode"),
    )
