"""A provider's policy: what it locks in every recipe that is resolved under it (docs/mixing.md, Policy).

`curator.mix.resolve` calls `under_policy` for every recipe, so none gets past it. A forced filter, score, hold_out,
revision or inoculation is added to recipes that lack it; what cannot be added is refused, and the error names the rule
and what would fit. The minimum ratio is that of the request: whole rows are rounded afterwards as in every mix.
"""

import hashlib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import orjson
from pydantic import Field, field_validator, model_validator

from curator.errors import BadInputError, PolicyError
from curator.recipe import (
    FilterSpec,
    Pool,
    Recipe,
    Reducer,
    RefusalFilter,
    RefusalRule,
    ScoreSpec,
)
from curator.recipe.base import OrderName, Spec
from curator.recipe.document import parse_document, read_document
from curator.recipe.filters import default_filters
from curator.recipe.fractions import exact
from curator.recipe.inoculation import Inoculation
from curator.recipe.strategies import StrategySpec

# Named entries allow whatever parameters a tenant gives; a spec allows itself alone.
AllowedStrategy = Annotated[str, Field(min_length=1)] | StrategySpec
AllowedFilter = Annotated[str, Field(min_length=1)] | FilterSpec


def _is_none(value: object) -> bool:
    return value is None


class Policy(Spec):
    """Locks on recipes. A field that is left out locks nothing.

    - `corpora`: those allowed, as NAME or NAME@REVISION, which fixes the revision. `max_pools`: most pools of a recipe.
    - `scorers: all`: every pool uses every complete scorer, without weights or a hold_out that no other rule allows.
      `hold_out`: the one of every pool; an empty list or false forbids it. `score`: the one of every pool, eps
      included. `reducers`: those allowed of ensembles.
    - `filters`: added to every pool. `user_filters`: those that a recipe may add: `any`, `none`, or a list of filters
      by name (with any parameters) or written out (with these alone). `strategies`: allowed in the same two ways.
    - `min_interleave_ratio`: least safe rows per task row over all pools. `max_copies`: most copies of a row.
      `orders`: those allowed. `forbid_user_evictions`: refuse a mix from whose pools a task set's copies pushed a row
      that may have been chosen.
    - `inoculation`: added to every recipe; with `user_inoculation: false` a recipe has none of its own.
    """

    name: str = Field(min_length=1, max_length=64)
    min_interleave_ratio: float | None = Field(default=None, ge=0.0, le=1000.0)
    strategies: tuple[AllowedStrategy, ...] | None = Field(default=None, min_length=1)
    orders: tuple[OrderName, ...] | None = Field(default=None, min_length=1)
    filters: tuple[FilterSpec, ...] = ()
    inoculation: Inoculation | None = None
    forbid_user_evictions: bool = False
    # Rules that came later are written only where they are used: policies without them keep their hash, and the mixes
    # made under them their ids and signatures.
    corpora: tuple[Annotated[str, Field(pattern=r"^[^@]+(@[^@]+)?$")], ...] | None = Field(
        default=None, min_length=1, exclude_if=_is_none
    )
    max_pools: int | None = Field(default=None, ge=0, le=16, exclude_if=_is_none)
    scorers: Literal["all"] | None = Field(default=None, exclude_if=_is_none)
    hold_out: tuple[str, ...] | None = Field(default=None, exclude_if=_is_none)
    score: ScoreSpec | None = Field(default=None, exclude_if=_is_none)
    reducers: tuple[Reducer, ...] | None = Field(default=None, min_length=1, exclude_if=_is_none)
    user_filters: Literal["any", "none"] | tuple[AllowedFilter, ...] = Field(
        default="any", exclude_if=lambda value: value == "any"
    )
    max_copies: int | None = Field(default=None, ge=1, le=1000, exclude_if=_is_none)
    user_inoculation: bool = Field(default=True, exclude_if=bool)

    @field_validator("filters", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [{"name": item} if isinstance(item, str) else item for item in value]
        return value

    @field_validator("score", mode="before")
    @classmethod
    def _score_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("hold_out", mode="before")
    @classmethod
    def _no_hold_out(cls, value: Any) -> Any:
        return () if value is False else value

    @model_validator(mode="after")
    def _known(self) -> "Policy":
        _check_known("strategy", self.strategies or (), StrategySpec)
        _check_known("filter", () if isinstance(self.user_filters, str) else self.user_filters, FilterSpec)
        named = [entry.partition("@")[0] for entry in self.corpora or ()]
        if self.inoculation is not None and self.inoculation.rows is not None:
            raise ValueError("a policy's inoculation names no `rows`: they are those of one data set")
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"corpus {twice[0]} is given twice: name it once, with a revision or without")
        return self


def _check_known(kind: str, entries: Iterable[Any], union: Any) -> None:
    """Refuse a name that is none of a union's."""
    names = [name for model in get_args(get_args(union)[0]) for name in _names_of(model)]
    unknown = sorted({entry for entry in entries if isinstance(entry, str)} - set(names))
    if unknown:
        raise ValueError(f"unknown {kind} {', '.join(unknown)}; there are {', '.join(names)}")


def _names_of(model: type[Spec]) -> tuple[str, ...]:
    return get_args(model.model_fields["name"].annotation)


def parse_policy(document: Any, name: str = "policy") -> Policy:
    """A policy from a decoded document, which errors call `name`; raises BadInputError naming every field at fault."""
    return parse_document(Policy, document, name)


def load_policy(path: str | Path) -> Policy:
    """The policy of a YAML or JSON file; raises MissingError without it, BadInputError when it is none."""
    return parse_policy(read_document(Path(path), "policy", BadInputError), f"policy {path}")


def policy_sha256(policy: Policy) -> str:
    """SHA-256 in hex over the policy's JSON with sorted keys, defaults written out but for later rules."""
    text = orjson.dumps(policy.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def under_policy(policy: Policy | None, recipe: Recipe, n_task: int | None = None) -> Recipe:
    """The recipe with what the policy forces added to it; the same recipe again gives the same.

    `n_task` (rows of the task set) makes absolute amounts comparable with the minimum ratio; without it they count
    as nothing. Raises PolicyError naming the rule that a recipe breaks. The rule `scorers` needs the store:
    `curator.mix.resolve` checks it.
    """
    if policy is None:
        return recipe
    if policy.max_pools is not None and len(recipe.pools) > policy.max_pools:
        asked, fits = f"a recipe of {len(recipe.pools)} pools", f"give {policy.max_pools} at most"
        raise _refusal(policy, "max_pools", asked, fits)
    pools = tuple(_under(policy, pool) for pool in recipe.pools)
    forced = recipe.model_copy(update={"pools": pools, "inoculation": recipe.inoculation or policy.inoculation})
    if policy.orders is not None and recipe.order not in policy.orders:
        raise _refusal(policy, "orders", f"order {recipe.order}", f"use {' or '.join(policy.orders)}")
    if policy.inoculation is not None and forced.inoculation != policy.inoculation:
        raise _refusal(policy, "inoculation", f"another inoculation than {policy.inoculation.name!r}", "leave it out")
    if not policy.user_inoculation and forced.inoculation != policy.inoculation:
        raise _refusal(policy, "user_inoculation", "an inoculation", "leave it out")
    if policy.min_interleave_ratio is not None:
        _check_ratio(policy, policy.min_interleave_ratio, forced, n_task)
    return forced


def check_scorers(policy: Policy | None, pool: Pool, named: Iterable[str], every: Iterable[str]) -> None:
    """Refuse a pool whose scorers (ids) are not `every` complete one, under the rule `scorers: all`."""
    if policy is not None and policy.scorers == "all" and set(named) != set(every):
        asked = f"a choice among the scorers of corpus {pool.corpus}"
        raise _refusal(policy, "scorers", asked, "leave out aligned, misaligned and benign")


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


def _under(policy: Policy, pool: Pool) -> Pool:
    """One pool with what is forced; raises PolicyError for what cannot be."""
    changes: dict[str, Any] = {"revision": _revision(policy, pool), "filters": _with_filters(policy, pool)}
    held_out = () if policy.hold_out is None and policy.scorers == "all" else policy.hold_out
    if held_out is not None:
        if pool.hold_out and set(pool.hold_out) != set(held_out):
            fits = f"leave it out, or give {', '.join(held_out)}" if held_out else "leave it out"
            rule = "scorers" if policy.hold_out is None else "hold_out"
            raise _refusal(policy, rule, f"hold_out {', '.join(pool.hold_out)}", fits)
        changes["hold_out"] = held_out
    if policy.score is not None:
        if pool.score not in (policy.score, ScoreSpec()):
            fits = f"leave it out, or give {_written(policy.score)}"
            raise _refusal(policy, "score", f"score {_written(pool.score)}", fits)
        changes["score"] = policy.score
    _check_allowed(policy, pool)
    return pool.model_copy(update=changes)


def _revision(policy: Policy, pool: Pool) -> str:
    """The revision of a pool whose corpus is allowed: the one that the policy fixes, or else the pool's own."""
    if policy.corpora is None:
        return pool.revision
    fixed = dict(entry.partition("@")[::2] for entry in policy.corpora)
    if pool.corpus not in fixed:
        raise _refusal(policy, "corpora", f"corpus {pool.corpus}", f"use {' or '.join(fixed)}")
    revision = fixed[pool.corpus]
    if not revision or pool.revision.startswith(revision):
        return pool.revision
    if pool.revision != "latest":
        asked = f"revision {pool.revision} of corpus {pool.corpus}"
        raise _refusal(policy, "corpora", asked, f"leave it out, or give {revision}")
    return revision


def _check_allowed(policy: Policy, pool: Pool) -> None:
    """Refuse a pool whose strategy, reducer or number of copies is not allowed."""
    if policy.strategies is not None and not _is_allowed(pool.strategy, policy.strategies):
        fits = " or ".join(map(_written, policy.strategies))
        raise _refusal(policy, "strategies", f"strategy {_written(pool.strategy)}", f"use {fits}")
    if policy.reducers is not None and pool.ensemble.reducer not in policy.reducers:
        fits = f"use {' or '.join(policy.reducers)}"
        raise _refusal(policy, "reducers", f"ensemble {pool.ensemble.reducer}", fits)
    if policy.scorers == "all" and policy.reducers is None and pool.ensemble.weights is not None:
        raise _refusal(policy, "scorers", "weights of scorers", "use another reducer than weighted")
    if policy.max_copies is not None and (pool.max_copies or 1) > policy.max_copies:
        fits = f"give {policy.max_copies} at most" if policy.max_copies > 1 else "use when_short error"
        raise _refusal(policy, "max_copies", f"max_copies {pool.max_copies}", fits)


def _is_allowed(spec: Any, entries: Iterable[Any]) -> bool:
    return any(entry in (spec, spec.name) for entry in entries)


def _written(spec: Any) -> str:
    """A spec as a recipe writes it: its name, with the parameters that are not the default ones."""
    if isinstance(spec, str):
        return spec
    given: dict[str, Any] = spec.model_dump(mode="json", exclude_defaults=True)
    given.pop("name", None)
    return str(spec.name) if not given else orjson.dumps({"name": spec.name, **given}).decode()


def _check_ratio(policy: Policy, floor: float, recipe: Recipe, n_task: int | None) -> None:
    ratio = least_ratio(recipe.pools, n_task)
    if ratio < exact(floor):
        asked = f"{float(ratio):g} safe rows per task row"
        raise _refusal(policy, "min_interleave_ratio", asked, f"ask for {floor:g} at least (amounts in tokens count 0)")
    short = [pool.corpus for pool in recipe.pools if pool.when_short == "as_many"]
    if short and floor > 0:
        asked = f"when_short as_many of pool {short[0]}, which may fall below {floor:g} safe rows per task row"
        raise _refusal(policy, "min_interleave_ratio", asked, "use when_short error")


def least_ratio(pools: tuple[Pool, ...], n_task: int | None) -> Fraction:
    """Safe rows per task row that the pools ask for; amounts in tokens are not known before the choice and count 0."""
    share = sum((exact(pool.mix_share) for pool in pools if pool.mix_share is not None), Fraction())
    own = sum((exact(pool.interleave_ratio) for pool in pools if pool.interleave_ratio is not None), Fraction())
    if n_task:
        own += Fraction(sum(pool.rows or 0 for pool in pools), n_task)
    return (own + share) / (1 - share) if share < 1 else own


def _with_filters(policy: Policy, pool: Pool) -> tuple[FilterSpec, ...]:
    """The pool's filters with the forced ones; of two refusal filters, of which there is one, the stricter parts."""
    filters = _own_filters(policy, pool)
    for forced in policy.filters:
        own = [i for i, spec in enumerate(filters) if isinstance(spec, RefusalFilter)]
        if isinstance(forced, RefusalFilter) and own:
            filters[own[0]] = _stricter(filters[own[0]], forced)
        elif forced not in filters:
            filters.append(forced)
    return tuple(filters)


def _own_filters(policy: Policy, pool: Pool) -> list[FilterSpec]:
    """The filters that a pool may add; raises PolicyError for another.

    Those that recipes have by default are always allowed; of two refusal filters, the forced one takes the place of it.
    """
    if policy.user_filters == "any":
        return list(pool.filters)
    entries = () if policy.user_filters == "none" else policy.user_filters
    forces_refusal = any(isinstance(spec, RefusalFilter) for spec in policy.filters)
    kept: list[FilterSpec] = []
    for spec in pool.filters:
        if spec in policy.filters or _is_allowed(spec, entries):
            kept.append(spec)
        elif spec not in default_filters():
            others = f"; {' or '.join(map(_written, entries))} may be added" if entries else ""
            raise _refusal(policy, "user_filters", f"filter {_written(spec)}", f"leave it out{others}")
        elif not (forces_refusal and isinstance(spec, RefusalFilter)):
            kept.append(spec)
    return kept


def _stricter(own: FilterSpec, forced: RefusalFilter) -> RefusalFilter:
    assert isinstance(own, RefusalFilter)
    rule: RefusalRule = "v2" if "v2" in (own.rule, forced.rule) else "v1"  # v2 covers v1
    return RefusalFilter(rule=rule, max_share=min(own.max_share, forced.max_share))


def _refusal(policy: Policy, rule: str, asked: str, remedy: str) -> PolicyError:
    return PolicyError(
        f"policy {policy.name!r} refuses {asked} (rule {rule}): {remedy}",
        details=[{"policy": policy.name, "rule": rule, "asked": asked, "remedy": remedy}],
    )
