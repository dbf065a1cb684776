"""Filling in a mix's manifest from its plan and from what was written."""

from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt

from curator.manifest import ratio_of
from curator.mixwriter import Written
from curator.orders import Schedule
from curator.plan import MixPlan
from curator.receipt import Manifest, OrderReceipt, PoolReceipt, Quantiles, ScorerRef, TaskReceipt, Tokens
from curator.saferows import Drawn
from curator.schema import MIX_FORMAT_VERSION
from curator.snapshot import Scorer
from curator.statements import ORDER_NOTE, protects, warnings_for
from curator.tasks import TaskSet

_QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def compose(plan: MixPlan, task_set: TaskSet, order: Schedule, written: Written, tokens: Tokens) -> Manifest:
    """The manifest of a mix; holds no clock and no path, so the same request gives the same document."""
    recipe, allocation = plan.recipe, plan.allocation
    task = TaskReceipt(
        n_rows=task_set.n_rows,
        sha256=task_set.sha256,
        n_rejected=task_set.n_rejected,
        reject_codes=task_set.reject_codes,
    )
    pools = tuple(_pool_receipt(drawn) for drawn in plan.drawn)
    return Manifest(
        mix_id=plan.mix_id,
        format_version=MIX_FORMAT_VERSION,
        product_version=product_version(),
        recipe=recipe,
        task=task,
        pools=pools,
        n_rows=len(order),
        n_safe=allocation.n_safe_total,
        ratio=ratio_of(allocation, order, tokens.task, tokens.safe),
        tokens=tokens,
        order=OrderReceipt(
            name=recipe.order,
            seed=recipe.seed,
            every_k=allocation.k,
            keeps_task_order=recipe.order != "shuffle",
            note=ORDER_NOTE,
        ),
        rows_sha256=written.rows_sha256,
        files=(written.file,),
        warnings=warnings_for(recipe, task, pools, tokens),
        protects=protects(allocation.n_safe_total),
    )


def product_version() -> str:
    """The installed version, or `unknown` in a bare checkout."""
    try:
        return version("ballast")
    except PackageNotFoundError:
        return "unknown"


def _pool_receipt(drawn: Drawn) -> PoolReceipt:
    data, selection = drawn.data, drawn.selection
    score = data.candidates.score
    return PoolReceipt(
        name=drawn.name,
        corpus=data.pool.corpus,
        revision=data.pool.revision,
        candidates_sha256=data.candidates_sha256,
        scorers=tuple(_scorer_ref(scorer) for scorer in data.scorers.all),
        n_candidates=len(score),
        n_without_gap=int(np.isnan(score).sum()),
        dropped=selection.screening.dropped,
        n_eligible=selection.n_eligible,
        chosen=len(selection.chosen),
        score=data.pool.score.name,
        quantiles={"candidates": _quantiles(score), "chosen": _quantiles(score[selection.chosen])},
    )


def _scorer_ref(scorer: Scorer) -> ScorerRef:
    return ScorerRef(
        scorer_id=scorer.scorer_id,
        role=scorer.role,
        domain=scorer.domain,
        label=scorer.label,
        weights_sha256=scorer.identity.get("weights_sha256"),
        adapter_sha256=scorer.identity.get("adapter_sha256"),
        sample=dict(scorer.sample) if scorer.sample else None,
    )


def _quantiles(score: npt.NDArray[np.float64]) -> Quantiles | None:
    """Quantiles over the rows that have a score; None where no row has."""
    known = score[~np.isnan(score)]
    if not len(known):
        return None
    values = np.quantile(known, list(_QUANTILES.values()), method="inverted_cdf").tolist()
    return Quantiles(n=len(known), **dict(zip(_QUANTILES, values, strict=True)))
