"""The recipe: one typed document, the same in the command line, the HTTP body and the manifest.

Unknown keys are refused and ranges are checked when it is built. One pool is the usual case and may be written
flat: `{"corpus": "sharegpt", "strategy": "top_gap", "interleave_ratio": 0.05}`.
"""

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from curator.config.base import Strict
from curator.config.filters import FilterSpec, RefusalFilter, RefusalRule
from curator.config.pools import (
    AMOUNTS,
    DEFAULT_EPS,
    DEFAULT_INTERLEAVE_RATIO,
    Ensemble,
    Pool,
    Reducer,
    ScoreName,
    ScoreSpec,
)
from curator.config.strategies import StrategyName, StrategySpec
from curator.errors import RecipeError

__all__ = [
    "AMOUNTS",
    "DEFAULT_EPS",
    "DEFAULT_INTERLEAVE_RATIO",
    "Ensemble",
    "FilterSpec",
    "OrderName",
    "Pool",
    "Recipe",
    "Reducer",
    "RefusalFilter",
    "RefusalRule",
    "ScoreName",
    "ScoreSpec",
    "StrategyName",
    "StrategySpec",
    "parse_recipe",
]

OrderName = Literal["every_k", "even", "shuffle"]


class Recipe(Strict):
    """A whole mixing request: pools, the order of task and safe rows, and the one seed."""

    pools: tuple[Pool, ...] = Field(min_length=1, max_length=16)
    order: OrderName = "even"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="before")
    @classmethod
    def _flat_pool(cls, value: Any) -> Any:
        if isinstance(value, dict) and "pools" not in value:
            own = {key: value[key] for key in value if key in cls.model_fields}
            flat = {key: value[key] for key in value if key not in cls.model_fields}
            return {**own, "pools": [flat]}
        return value


def parse_recipe(document: Any) -> Recipe:
    """A recipe from a decoded JSON or YAML document.

    Raises RecipeError naming every field at fault, so that one round of corrections is enough.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        problems = [
            {"pointer": "/" + "/".join(str(part) for part in item["loc"]), "message": item["msg"]}
            for item in error.errors()
        ]
        text = "; ".join(f"{problem['pointer']}: {problem['message']}" for problem in problems[:5])
        raise RecipeError(f"recipe refused: {text}", details=problems) from error
