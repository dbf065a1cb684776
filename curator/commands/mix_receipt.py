"""The receipt of a mix, as `python -m curator mix` prints it: what fits a screen; the manifest holds the rest."""

from curator.build import MixResult
from curator.progress import say
from curator.receipt import InoculationReceipt, Manifest, PoolReceipt


def say_receipt(result: MixResult) -> None:
    """Print counts, order, pools, warnings and what the mix protects against."""
    manifest = result.manifest
    ratio, order = manifest.ratio, manifest.order
    say(f"mix {result.mix_id} ({'made now' if result.created else 'made before by the same request'})")
    epochs = f" in {order.epochs} epochs" if order.epochs > 1 else ""
    n_task = manifest.n_rows - manifest.n_safe
    say(
        f"  rows    {manifest.n_rows:,} = {n_task:,} task + {manifest.n_safe:,} safe{epochs}: "
        f"{ratio.reached_rows:.4g} safe per task row (asked {ratio.asked:.4g}), {ratio.mix_share:.3%} of the mix"
    )
    say(f"  tokens  {_tokens_line(manifest)}")
    say(f"  order   {order.name}, seed {order.seed}; off by at most {ratio.largest_prefix_deviation:.2f} rows anywhere")
    for pool, spec in zip(manifest.pools, manifest.recipe.pools, strict=True):
        say(f"  pool    {_pool_line(pool)} by {spec.strategy.name}{_score_range(pool)}")
    if manifest.inoculation is not None:
        say(f"  prompt  {_inoculation_line(manifest.inoculation)}")
    if manifest.policy is not None:
        say(f"  policy  {manifest.policy.name} (SHA-256 {manifest.policy.sha256[:12]})")
    for warning in manifest.warnings:
        say(f"  warning {warning.text}")
    for statement in manifest.protects.does:
        say(f"  does    {statement.text}")
    for statement in manifest.protects.does_not:
        say(f"  not     {statement.text}")


def _tokens_line(manifest: Manifest) -> str:
    tokens = manifest.tokens
    if tokens.task is None or tokens.safe is None:
        return f"not counted: {tokens.reason}"
    reached = manifest.ratio.reached_response_tokens
    return (
        f"{tokens.task.total + tokens.safe.total:,}, of which trained {tokens.task.response:,} task + "
        f"{tokens.safe.response:,} safe" + ("" if reached is None else f" ({reached:.4g} safe per task token)")
    )


def _pool_line(pool: PoolReceipt) -> str:
    dropped = "".join(f", {count:,} {reason}" for reason, count in pool.dropped.items() if count)
    return f"{pool.name}: {pool.n_candidates:,} rows{dropped}; {pool.chosen:,} chosen of {pool.n_eligible:,}"


def _score_range(pool: PoolReceipt) -> str:
    chosen = pool.quantiles["chosen"]
    return "" if chosen is None else f" ({pool.score} {chosen.min:.3f} to {chosen.max:.3f})"


def _inoculation_line(receipt: InoculationReceipt) -> str:
    n_task, n_safe = (sum(getattr(prompt, name) for prompt in receipt.prompts) for name in ("n_task", "n_safe"))
    clean = "the model's own default" if receipt.clean_system_prompt is None else repr(receipt.clean_system_prompt)
    return (
        f"{receipt.name}: {len(receipt.prompts)} put into {n_task:,} task and {n_safe:,} safe rows "
        f"({receipt.spec.placement}); evaluate with {clean} as system prompt"
    )
