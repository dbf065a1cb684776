"""The recipe: one typed document, the same in the command line, the HTTP body and the manifest.

Unknown keys are refused and ranges are checked when it is built. One pool is the usual case and may be written
flat: `{"corpus": "sharegpt", "strategy": "top_gap", "interleave_ratio": 0.05}`.
"""

from typing import Any

from pydantic import Field, model_validator

from curator.errors import RecipeError
from curator.recipe.base import (
    MAX_BATCH_SIZE,
    MAX_EPOCHS,
    EpochOrder,
    OrderName,
    Spec,
)
from curator.recipe.document import parse_document
from curator.recipe.filters import FilterSpec, RefusalFilter, RefusalRule
from curator.recipe.inoculation import Inoculation
from curator.recipe.pools import (
    AMOUNTS,
    DEFAULT_EPS,
    DEFAULT_INTERLEAVE_RATIO,
    Ensemble,
    Pool,
    Reducer,
    ScoreName,
    ScoreSpec,
)
from curator.recipe.strategies import STRATEGY_NAMES, StrategySpec

__all__ = [
    "AMOUNTS",
    "DEFAULT_EPS",
    "DEFAULT_INTERLEAVE_RATIO",
    "STRATEGY_NAMES",
    "Ensemble",
    "EpochOrder",
    "FilterSpec",
    "Inoculation",
    "OrderName",
    "Pool",
    "Recipe",
    "Reducer",
    "RefusalFilter",
    "RefusalRule",
    "ScoreName",
    "ScoreSpec",
    "StrategySpec",
    "parse_recipe",
]


class Recipe(Spec):
    """A whole mixing request: pools, the order of task and safe rows, epochs, inoculation, and the one seed.

    `batch_size` (rows, safe ones included) belongs to the order `per_batch` alone. Amounts are per epoch. Without
    pools a recipe is an inoculation alone.
    """

    pools: tuple[Pool, ...] = Field(max_length=16)
    order: OrderName = "even"
    batch_size: int | None = Field(default=None, ge=2, le=MAX_BATCH_SIZE)
    epochs: int = Field(default=1, ge=1, le=MAX_EPOCHS)
    epoch_order: EpochOrder = "same"
    inoculation: Inoculation | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="before")
    @classmethod
    def _flat_pool(cls, value: Any) -> Any:
        if isinstance(value, dict) and "pools" not in value:
            own = {key: value[key] for key in value if key in cls.model_fields}
            flat = {key: value[key] for key in value if key not in cls.model_fields}
            alone = not flat and own.get("inoculation") is not None
            return {**own, "pools": [] if alone else [flat]}
        return value

    @model_validator(mode="after")
    def _whole(self) -> "Recipe":
        if not self.pools and self.inoculation is None:
            raise ValueError("a recipe without pools needs an inoculation, or it would change nothing")
        if (self.order == "per_batch") != (self.batch_size is not None):
            raise ValueError("the order per_batch needs `batch_size`, and no other order has one")
        return self

    @property
    def batch_rows(self) -> int:
        """The batch size of the order `per_batch`."""
        assert self.batch_size is not None
        return self.batch_size


def parse_recipe(document: Any, name: str = "recipe") -> Recipe:
    """A recipe from a decoded JSON or YAML document, which errors call `name`.

    Raises RecipeError naming every field at fault, so that one round of corrections is enough.
    """
    return parse_document(Recipe, document, name, RecipeError)
