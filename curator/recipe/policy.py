"""A provider's policy: what it locks in every recipe that is resolved under it (docs/mixing.md, Policy).

`curator.mix.resolve` calls `under_policy` for every recipe, so none gets past it. Forced filters and a forced
inoculation are added to recipes that lack them; what cannot be added is refused, and the error names the rule. The
minimum ratio is that of the request: whole rows are rounded afterwards as in every mix.
"""

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import orjson
from pydantic import Field, field_validator

from curator.errors import BadInputError, PolicyError
from curator.recipe import (
    FilterSpec,
    Pool,
    Recipe,
    RefusalFilter,
    RefusalRule,
)
from curator.recipe.base import OrderName, Strict
from curator.recipe.document import parse_document, read_document
from curator.recipe.fractions import exact
from curator.recipe.inoculation import Inoculation
from curator.recipe.strategies import StrategySpec


class Policy(Strict):
    """Locks on recipes. A field that is left out locks nothing.

    `min_interleave_ratio` is the least safe rows per task row over all pools. `strategies` and `orders` are those
    allowed. `filters` are added to every pool; `inoculation` to every recipe. `forbid_user_evictions` refuses a mix
    from whose pools a task set's copies pushed a row that may have been chosen.
    """

    name: str = Field(min_length=1, max_length=64)
    min_interleave_ratio: float | None = Field(default=None, ge=0.0, le=1000.0)
    strategies: tuple[str, ...] | None = Field(default=None, min_length=1)
    orders: tuple[OrderName, ...] | None = Field(default=None, min_length=1)
    filters: tuple[FilterSpec, ...] = ()
    inoculation: Inoculation | None = None
    forbid_user_evictions: bool = False

    @field_validator("filters", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [{"name": item} if isinstance(item, str) else item for item in value]
        return value

    @field_validator("strategies")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = [model.model_fields["name"].default for model in get_args(get_args(StrategySpec)[0])]
        unknown = sorted(set(value or ()) - set(names))
        if unknown:
            raise ValueError(f"unknown strategy {', '.join(unknown)}; there are {', '.join(names)}")
        return value


def parse_policy(document: Any) -> Policy:
    """A policy from a decoded document; raises BadInputError naming every field at fault."""
    return parse_document(Policy, document, "policy")


def load_policy(path: str | Path) -> Policy:
    """The policy of a YAML or JSON file; raises MissingError without it, BadInputError when it is none."""
    return parse_policy(read_document(Path(path), "policy", BadInputError))


def policy_sha256(policy: Policy) -> str:
    """SHA-256 in hex over the policy's JSON with sorted keys, defaults written out."""
    text = orjson.dumps(policy.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def under_policy(policy: Policy | None, recipe: Recipe, n_task: int | None = None) -> Recipe:
    """The recipe with what the policy forces added to it; the same recipe again gives the same.

    `n_task` (rows of the task set) makes absolute amounts comparable with the minimum ratio; without it they count
    as nothing. Raises PolicyError naming the rule that a recipe breaks.
    """
    if policy is None:
        return recipe
    pools = tuple(pool.model_copy(update={"filters": _with_filters(policy, pool)}) for pool in recipe.pools)
    forced = recipe.model_copy(update={"pools": pools, "inoculation": recipe.inoculation or policy.inoculation})
    _check_names(policy, forced)
    if policy.inoculation is not None and forced.inoculation != policy.inoculation:
        raise _refusal(policy, "inoculation", f"another inoculation than {policy.inoculation.name!r}", "leave it out")
    if policy.min_interleave_ratio is not None:
        _check_ratio(policy, policy.min_interleave_ratio, forced, n_task)
    return forced


def check_evictions(policy: Policy | None, evicted: Mapping[str, int]) -> None:
    """Refuse a choice whose best rows a task set pushed out; `evicted` counts such rows by pool."""
    worst = max(evicted, key=lambda name: evicted[name], default=None)
    if policy is None or not policy.forbid_user_evictions or worst is None or not evicted[worst]:
        return
    raise _refusal(
        policy,
        "forbid_user_evictions",
        f"a task set whose rows, or near copies, push {evicted[worst]:,} of the best rows out of pool {worst}",
        "leave those task rows out",
    )


def _check_names(policy: Policy, recipe: Recipe) -> None:
    allowed = policy.strategies
    for pool in recipe.pools if allowed else ():
        if allowed is not None and pool.strategy.name not in allowed:
            raise _refusal(policy, "strategies", f"strategy {pool.strategy.name}", f"use {' or '.join(allowed)}")
    if policy.orders is not None and recipe.order not in policy.orders:
        raise _refusal(policy, "orders", f"order {recipe.order}", f"use {' or '.join(policy.orders)}")


def _check_ratio(policy: Policy, floor: float, recipe: Recipe, n_task: int | None) -> None:
    ratio = _least_ratio(recipe.pools, n_task)
    if ratio < exact(floor):
        asked = f"{float(ratio):g} safe rows per task row"
        raise _refusal(policy, "min_interleave_ratio", asked, f"ask for {floor:g} at least (amounts in tokens count 0)")
    short = [pool.corpus for pool in recipe.pools if pool.when_short == "as_many"]
    if short and floor > 0:
        asked = f"when_short as_many of pool {short[0]}, which may fall below {floor:g} safe rows per task row"
        raise _refusal(policy, "min_interleave_ratio", asked, "use when_short error")


def _least_ratio(pools: tuple[Pool, ...], n_task: int | None) -> Fraction:
    """Safe rows per task row that the pools ask for; amounts in tokens are not known before the choice and count 0."""
    share = sum((exact(pool.mix_share) for pool in pools if pool.mix_share is not None), Fraction())
    own = sum((exact(pool.interleave_ratio) for pool in pools if pool.interleave_ratio is not None), Fraction())
    if n_task:
        own += Fraction(sum(pool.rows or 0 for pool in pools), n_task)
    return (own + share) / (1 - share) if share < 1 else own


def _with_filters(policy: Policy, pool: Pool) -> tuple[FilterSpec, ...]:
    """The pool's filters with the forced ones; of two refusal filters, of which there is one, the stricter parts."""
    filters = list(pool.filters)
    for forced in policy.filters:
        own = [i for i, spec in enumerate(filters) if isinstance(spec, RefusalFilter)]
        if isinstance(forced, RefusalFilter) and own:
            filters[own[0]] = _stricter(filters[own[0]], forced)
        elif forced not in filters:
            filters.append(forced)
    return tuple(filters)


def _stricter(own: FilterSpec, forced: RefusalFilter) -> RefusalFilter:
    assert isinstance(own, RefusalFilter)
    rule: RefusalRule = "v2" if "v2" in (own.rule, forced.rule) else "v1"  # v2 covers v1
    return RefusalFilter(rule=rule, max_share=min(own.max_share, forced.max_share))


def _refusal(policy: Policy, rule: str, asked: str, remedy: str) -> PolicyError:
    return PolicyError(
        f"policy {policy.name!r} refuses {asked} (rule {rule}): {remedy}",
        details=[{"policy": policy.name, "rule": rule, "asked": asked, "remedy": remedy}],
    )
