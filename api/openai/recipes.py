"""The recipe of a fine-tuning job: the operator's, with what the caller tightens.

A caller's document (`extra_body={"ballast": {"recipe": ...}}` or `metadata={"ballast_recipe": "..."}`) is laid over
the operator's recipe, which then holds like a policy: more safe rows, another seed, a stricter refusal filter pass;
fewer safe rows, another corpus, strategy, order, score or scorers do not. The tenant's policy holds besides. Without a
recipe of the operator's the caller's is taken as it is, under the policy alone.
"""

import json
from typing import Any

from api.errors import ApiError
from api.openai.bodies import METADATA_RECIPE
from api.openai.errors import refused
from curator.errors import PolicyError, RecipeError
from curator.recipe import AMOUNTS, Pool, Recipe, parse_recipe
from curator.recipe.document import load_document
from curator.recipe.policy import Policy, least_ratio, under_policy

_SAME = ("aligned", "misaligned", "benign", "hold_out", "score", "ensemble", "allow_negative_control")
_PAIRS = {"order": ("batch_size",), "when_short": ("max_copies",)}  # what is meant for one value of the key alone


def asked_recipe(recipe: dict[str, Any] | None, metadata: dict[str, str]) -> tuple[dict[str, Any] | None, str]:
    """The caller's document, None without one, and the parameter that holds it; raises ApiError 400 for a bad one."""
    text = metadata.get(METADATA_RECIPE)
    if text is None:
        return recipe, "ballast.recipe"
    if recipe is not None:
        raise refused(400, "invalid_recipe", f"give ballast.recipe or metadata.{METADATA_RECIPE}, not both", "ballast")
    try:
        found = load_document(text)
    except ValueError as error:
        raise refused(400, "invalid_recipe", f"{METADATA_RECIPE}: {error}", f"metadata.{METADATA_RECIPE}") from error
    if not isinstance(found, dict):
        raise refused(400, "invalid_recipe", f"{METADATA_RECIPE} must be an object", f"metadata.{METADATA_RECIPE}")
    return found, f"metadata.{METADATA_RECIPE}"


def job_recipe(
    base: dict[str, Any] | None, asked: dict[str, Any] | None, param: str, policy: Policy | None, n_task: int
) -> Recipe:
    """The recipe of a job with `n_task` training rows.

    Raises ApiError 400 naming `param` when there is no recipe, when the caller's is none, loosens the operator's or
    breaks the policy.
    """
    try:
        return _recipe(base, asked, policy, n_task)
    except (RecipeError, PolicyError) as error:
        raise refused(400, error.code, error.message, param, list(error.details)) from error


def _recipe(base: dict[str, Any] | None, asked: dict[str, Any] | None, policy: Policy | None, n_task: int) -> Recipe:
    if base is None and asked is None:
        raise _no_recipe()
    recipe = parse_recipe(laid_over(base or {}, asked or {}))
    if base is not None and asked is not None:
        recipe = _tightened(parse_recipe(base), recipe, n_task)
    under_policy(policy, recipe, n_task)  # the worker applies it; here it refuses before a job is made
    return recipe


def _no_recipe() -> ApiError:
    message = (
        "this service has no recipe for fine-tuning jobs: its operator sets openai_recipe, or send one as "
        'extra_body={"ballast": {"recipe": {"corpus": NAME}}}'
    )
    return refused(400, "no_recipe", message, "ballast.recipe")


def laid_over(base: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The operator's document with the caller's keys in the place of its own; an amount replaces any other amount."""
    kept = dict(base)
    pools = kept.get("pools")
    own = set(Recipe.model_fields) - {"pools"}
    if "pools" in asked or pools is not None:
        if "pools" not in asked and set(asked) - own and isinstance(pools, list | tuple) and len(pools) == 1:
            kept = {**{key: value for key, value in kept.items() if key != "pools"}, **pools[0]}
        elif "pools" not in asked and set(asked) - own:
            raise RecipeError("the service's recipe has several pools: give `pools` to change one of them")
        elif "pools" in asked:
            kept = {key: value for key, value in kept.items() if key in own}
    if set(asked) & set(AMOUNTS):
        kept = {key: value for key, value in kept.items() if key not in AMOUNTS}
    for key, others in _PAIRS.items():
        if key in asked:
            kept = {name: value for name, value in kept.items() if name not in others}
    return {**kept, **asked}


def _tightened(base: Recipe, recipe: Recipe, n_task: int) -> Recipe:
    """The caller's recipe with what the operator's has besides, such as filters.

    Raises PolicyError when it gives less than the operator's, or something else.
    """
    fixed = ("epochs", "epoch_order", "batch_size")
    changed = [name for name in fixed if getattr(recipe, name) != getattr(base, name)]
    if changed:
        raise PolicyError(f"the service's recipe fixes {changed[0]}: leave it out")
    own = {pool.corpus: pool for pool in base.pools}
    for pool in recipe.pools:
        for name in _SAME if pool.corpus in own else ():
            if getattr(pool, name) != getattr(own[pool.corpus], name):
                raise PolicyError(f"the service's recipe fixes {name} of pool {pool.corpus}: leave it out")
    if any(pool.tokens is not None for pool in base.pools) and _amounts(recipe) != _amounts(base):
        raise PolicyError("the service's recipe has its amounts in tokens, which cannot be compared: leave yours out")
    forced = under_policy(_as_policy(base, n_task), _filled(recipe, own), n_task)
    pools = zip(forced.pools, recipe.pools, strict=True)
    as_asked = tuple(pool.model_copy(update={"when_short": asked.when_short}) for pool, asked in pools)
    return forced.model_copy(update={"pools": as_asked})


def _amounts(recipe: Recipe) -> list[tuple[str, Any]]:
    return [(pool.corpus, getattr(pool, pool.amount)) for pool in recipe.pools]


def _filled(recipe: Recipe, own: dict[str, Pool]) -> Recipe:
    """The recipe as if every pool had enough rows, where the operator lets it come short too."""
    short = {name for name, pool in own.items() if pool.when_short == "as_many"}
    enough = {"when_short": "error"}
    pools = (
        pool.model_copy(update=enough) if pool.when_short == "as_many" and pool.corpus in short else pool
        for pool in recipe.pools
    )
    return recipe.model_copy(update={"pools": tuple(pools)})


def _as_policy(base: Recipe, n_task: int) -> Policy:
    """What a recipe asks for, as locks."""
    pools, name = base.pools, "openai_recipe"
    own = base.inoculation is not None
    if not pools:
        return Policy(name=name, orders=(base.order,), inoculation=base.inoculation, user_inoculation=own)
    revisions: dict[str, set[str]] = {}
    for pool in pools:
        revisions.setdefault(pool.corpus, set()).add(pool.revision)
    return Policy(
        name=name,
        min_interleave_ratio=min(1000.0, float(least_ratio(pools, n_task))),
        strategies=tuple(pool.strategy for pool in pools),
        orders=(base.order,),
        filters=tuple(spec for spec in pools[0].filters if all(spec in pool.filters for pool in pools)),
        user_filters=("refusal", *(spec for pool in pools for spec in pool.filters)),
        corpora=tuple(
            corpus if len(found) > 1 or found == {"latest"} else f"{corpus}@{min(found)}"
            for corpus, found in revisions.items()
        ),
        max_pools=len(pools),
        max_copies=max(pool.max_copies or 1 for pool in pools),
        inoculation=base.inoculation,
        user_inoculation=own,
    )


def shown(recipe: Recipe) -> str:
    """A recipe as one line of JSON, defaults left out."""
    return json.dumps(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
