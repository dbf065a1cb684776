"""How rows are picked from those that pass the filters, as a recipe writes it (docs/recipe.md)."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from curator.recipe.base import MAX_NAMES, Name, Spec

Pick = Literal["random", "top_gap"]
StratumColumn = Literal["domain", "source", "language", "license", "harm", "n_turns"]


class StrategyBase(Spec):
    """What all strategies share. A `pick`, where a strategy has one, may rank by the score besides."""

    uses_score: ClassVar[bool] = False  # rows without a score cannot be judged
    ranked: ClassVar[bool] = False  # rank 1 is the best score, or for a control the worst


Quotas = Annotated[dict[Name, Annotated[float, Field(gt=0.0, le=1e9)]], Field(max_length=MAX_NAMES)]


class Random(StrategyBase):
    """Every row is as likely as any other (the paper's Interleaving)."""

    name: Literal["random"] = "random"


class TopGap(StrategyBase):
    """The rows with the highest score (the paper's Interleaving+, and ++ with refusals dropped)."""

    name: Literal["top_gap"] = "top_gap"
    uses_score: ClassVar[bool] = True
    ranked: ClassVar[bool] = True


class BottomGap(StrategyBase):
    """The rows with the lowest score: a negative control, only with `allow_negative_control`."""

    name: Literal["bottom_gap"] = "bottom_gap"
    uses_score: ClassVar[bool] = True
    ranked: ClassVar[bool] = True


class Threshold(StrategyBase):
    """Rows whose score lies within bounds (both included), picked at random or from the top."""

    name: Literal["threshold"] = "threshold"
    uses_score: ClassVar[bool] = True
    min: float | None = None
    max: float | None = None
    pick: Pick = "random"

    @model_validator(mode="after")
    def _bounds(self) -> "Threshold":
        if self.min is None and self.max is None:
            raise ValueError("the threshold strategy needs `min` or `max`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("the threshold strategy's `min` is above its `max`")
        return self


class QuantileBand(StrategyBase):
    """Rows between two quantiles of the score among the rows that pass the filters; 0.8 to 0.99 drops outliers."""

    name: Literal["quantile_band"] = "quantile_band"
    uses_score: ClassVar[bool] = True
    low: float = Field(default=0.8, ge=0.0, le=1.0)
    high: float = Field(default=0.99, ge=0.0, le=1.0)
    pick: Pick = "random"

    @model_validator(mode="after")
    def _bounds(self) -> "QuantileBand":
        if self.low >= self.high:
            raise ValueError("the quantile_band strategy's `low` must be below its `high`")
        return self


class Weighted(StrategyBase):
    """Sampling without replacement, each row with weight exp(score / temperature) (Gumbel top-k)."""

    name: Literal["weighted"] = "weighted"
    uses_score: ClassVar[bool] = True
    temperature: float = Field(default=0.1, ge=1e-6, le=1e6)


class Stratified(StrategyBase):
    """Quotas by the values of a column: equal, as in the pool, or by the weights given for each value.

    Rows of a value that has no weight are left out. `missing` is for rows without a value.
    """

    name: Literal["stratified"] = "stratified"
    by: StratumColumn
    quotas: Literal["equal", "proportional"] | Quotas = "proportional"
    pick: Pick = "top_gap"
    missing: Literal["fail", "drop"] = "fail"

    @model_validator(mode="after")
    def _some(self) -> "Stratified":
        if not self.quotas:
            raise ValueError("the stratified strategy's `quotas` name no value")
        return self


class Diverse(StrategyBase):
    """Rows in order of `pick`, but none whose word 3-grams have more than this Jaccard similarity with a picked one."""

    name: Literal["diverse"] = "diverse"
    max_similarity: float = Field(default=0.5, ge=0.0, lt=1.0)
    pick: Pick = "top_gap"


class Coverage(StrategyBase):
    """Rows with a high score and prompts unlike those already chosen: `spread` says how much likeness costs.

    Looked at are the best rows, `among` times as many as are requested. With `spread` 0 this is `top_gap`.
    """

    name: Literal["coverage"] = "coverage"
    uses_score: ClassVar[bool] = True
    ranked: ClassVar[bool] = True
    spread: float = Field(default=1.0, ge=0.0, le=1.0)
    among: float = Field(default=4.0, ge=1.0, le=100.0)


class DomainMatched(StrategyBase):
    """Only the share of rows whose prompts are nearest in words to the user's, picked at random or from the top."""

    name: Literal["domain_matched"] = "domain_matched"
    nearest: float = Field(default=0.25, gt=0.0, le=1.0)
    pick: Pick = "random"


StrategySpec = Annotated[
    Random | TopGap | BottomGap | Threshold | QuantileBand | Weighted | Stratified | Diverse | Coverage | DomainMatched,
    Field(discriminator="name"),
]

STRATEGY_NAMES = tuple(str(model.model_fields["name"].default) for model in get_args(get_args(StrategySpec)[0]))


def needs_score(spec: StrategySpec) -> bool:
    """Whether rows without a gap cannot be judged by this strategy."""
    return spec.uses_score or _picks_top(spec)


def ranks_by_score(spec: StrategySpec) -> bool:
    """Whether rank 1 is the best score; otherwise a rank would mean nothing to a reader."""
    return spec.ranked or _picks_top(spec)


def _picks_top(spec: StrategySpec) -> bool:
    return getattr(spec, "pick", "random") == "top_gap"
