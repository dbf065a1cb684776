"""Filling in a mix's manifest from its plan and from what was written."""

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from curator.columns import Mask
from curator.config import Recipe
from curator.inoculation import prompts
from curator.manifest import ratio_of
from curator.mixwriter import Written
from curator.orders import Allocation, Schedule, keeps_task_order
from curator.plan import MixPlan
from curator.policy import Policy, policy_sha256
from curator.quantiles import kept_quantiles, quantiles
from curator.receipt import (
    Amounts,
    Evictions,
    InoculationReceipt,
    LabelShare,
    Manifest,
    OrderReceipt,
    PolicyReceipt,
    PoolReceipt,
    PromptReceipt,
    ScorerRef,
    TaskReceipt,
    Tokens,
)
from curator.saferows import Drawn
from curator.schema import MIX_FORMAT_VERSION
from curator.selection import TOKENS
from curator.snapshot import Scorer
from curator.statements import INOCULATION_NOTE, ORDER_NOTE, is_negative_control, protects, warnings_for
from curator.tasks import TaskSet


def compose(
    plan: MixPlan,
    task_set: TaskSet,
    order: Schedule,
    written: Written,
    tokens: Tokens,
    prompt_counts: Mapping[str, Mapping[str, int]] | None = None,
) -> Manifest:
    """The manifest of a mix; holds no clock and no path, so the same request gives the same document.

    `prompt_counts` are rows of an epoch by prompt label and origin (`rowprompts.count_prompts`).
    """
    pools = tuple(pool_receipt(drawn, plan.allocation) for drawn in plan.drawn)
    made = Made(plan.mix_id, plan.recipe, plan.allocation, pools, policy_receipt(plan.policy))
    return compose_from(made, task_set, order, written, tokens, prompt_counts or {})


@dataclass(frozen=True)
class Made:
    """What a mix was decided to be, its pools told by their receipts."""

    mix_id: str
    recipe: Recipe
    allocation: Allocation
    pools: tuple[PoolReceipt, ...]
    policy: PolicyReceipt | None


def compose_from(
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


def product_version() -> str:
    """The installed version; in a bare checkout, which nobody installed, the one that its pyproject.toml names."""
    try:
        return version("ballast")
    except PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])


def pool_receipt(drawn: Drawn, allocation: Allocation) -> PoolReceipt:
    """The receipt of one pool of a mix with these counts."""
    data, selection = drawn.data, drawn.selection
    scores, refuses, chosen = data.candidates.scores, data.candidates.refuses("v1"), selection.chosen
    return PoolReceipt(
        name=drawn.name,
        corpus=data.pool.corpus,
        revision=data.pool.revision,
        candidates_sha256=data.candidates_sha256,
        scorers=tuple(_scorer_ref(scorer) for scorer in data.scorers.all),
        n_candidates=len(data.candidates),
        n_without_gap=int(np.count_nonzero(~scores.known)),
        dropped=selection.screening.dropped,
        n_eligible=selection.n_eligible,
        chosen=len(chosen),
        amounts=_amounts(drawn, allocation),
        n_distinct=selection.n_distinct,
        n_short=selection.n_short,
        n_passed_unjudged=dict(selection.screening.unjudged),
        score=data.pool.score.name,
        quantiles={"candidates": kept_quantiles(data), "chosen": quantiles(scores.at(chosen))},
        refusal_share={
            "candidates": _refusal_share(refuses),
            "chosen": _refusal_share(refuses[chosen]),
        },
        domains=_label_shares(data.kept.wide.labels["domain"].texts(chosen)),
        licences=_label_shares(data.kept.wide.labels["license"].texts(chosen)),
        evicted_by_task_set=Evictions(rows=selection.evicted.rows, among_best=selection.evicted.among_best),
    )


def _amounts(drawn: Drawn, allocation: Allocation) -> Amounts:
    pool, chosen = drawn.data.pool, drawn.selection.chosen
    tokens = drawn.data.candidates.counts[TOKENS][chosen]
    return Amounts(
        asked=pool.amount,
        asked_value=getattr(pool, pool.amount),
        interleave_ratio=len(chosen) / allocation.n_task,
        mix_share=len(chosen) / allocation.n_epoch_rows,
        rows=len(chosen),
        tokens=None if np.isnan(tokens).any() else int(tokens.sum()),
    )


def _refusal_share(refuses: Mask) -> float | None:
    """Share of answers that open like a refusal, rule v1; None without any."""
    return int(np.count_nonzero(refuses)) / len(refuses) if len(refuses) else None


def _label_shares(values: Sequence[str | None]) -> tuple[LabelShare, ...]:
    counts = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0] is None, item[0] or ""))
    return tuple(LabelShare(value=value, n_rows=n, share=n / len(values)) for value, n in counts)


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
