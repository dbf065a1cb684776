"""A provider's policy: what it locks in every recipe that is resolved under it (docs/mixing.md, Policy)."""

from typing import Any, get_args

from pydantic import Field, field_validator

from curator.config.base import Strict
from curator.config.filters import FilterSpec
from curator.config.inoculation import Inoculation
from curator.config.orders import OrderName
from curator.config.strategies import StrategySpec


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
