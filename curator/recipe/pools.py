"""One pool of a recipe: where safe rows come from, how they are chosen and how many (docs/recipe.md)."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from curator.recipe.base import MAX_NAMES, CorpusName, Name, Names, Spec
from curator.recipe.filters import FilterSpec, default_filters
from curator.recipe.strategies import StrategySpec, TopGap

DEFAULT_EPS = 1.0  # method.md, "The perplexity gap": keeps short answers with a tiny aligned loss from ranking first
DEFAULT_INTERLEAVE_RATIO = 0.05  # method.md, "Amount and order"

ScoreName = Literal["gap_rel", "gap_abs", "gap_contrast", "sum_gap"]
Reducer = Literal["mean", "median", "min", "max", "weighted"]
WhenShort = Literal["error", "cycle", "as_many"]
AmountName = Literal["interleave_ratio", "mix_share", "rows", "tokens"]
AMOUNTS: tuple[AmountName, ...] = ("interleave_ratio", "mix_share", "rows", "tokens")


class ScoreSpec(Spec):
    """Which gap column ranks the pool (sql/views); `eps` (nats per token) is used by gap_rel alone."""

    name: ScoreName = "gap_rel"
    eps: float = Field(default=DEFAULT_EPS, ge=0.0, le=100.0)


class Ensemble(Spec):
    """How several misaligned models' losses become one (sql/views/ensemble.sql); `weights` by scorer name."""

    reducer: Reducer = "mean"
    weights: dict[Name, Annotated[float, Field(ge=0.0, le=1e9)]] | None = Field(default=None, max_length=MAX_NAMES)

    @model_validator(mode="after")
    def _weights_when_weighted(self) -> "Ensemble":
        if (self.reducer == "weighted") != (self.weights is not None):
            raise ValueError("give `weights` with the reducer `weighted`, and with no other")
        if self.weights is not None and sum(self.weights.values()) <= 0:
            raise ValueError("at least one weight must be above 0")
        return self


class Pool(Spec):
    """Where safe rows come from, how they are chosen and how many.

    `aligned`, `misaligned` and `benign` name scorers by id, unique id prefix or label; null means every
    complete scorer of that role in the corpus. `hold_out` leaves out misaligned (and benign) models by domain.
    `filters` are all that are applied: a list takes the place of the default, which drops refusals, what fails a check
    of hygiene, and answers of fewer than four response tokens. A name that it leaves out is turned off.
    Exactly one amount is given: safe rows per task row, share of the whole mix, a number of rows, or a number of
    trained tokens. `when_short` says what to do when there are fewer: fail, take each row up to `max_copies`
    times, or take as many as there are.
    """

    corpus: CorpusName
    revision: Name = "latest"
    aligned: Name | None = None
    misaligned: Names | None = None
    benign: Names | None = None
    hold_out: Names = ()
    score: ScoreSpec = ScoreSpec()
    ensemble: Ensemble = Ensemble()
    filters: tuple[FilterSpec, ...] = Field(default=default_filters(), max_length=32)
    strategy: StrategySpec = TopGap()
    allow_negative_control: bool = False
    interleave_ratio: float | None = Field(default=None, ge=0.0, le=1000.0)
    mix_share: float | None = Field(default=None, ge=0.0, lt=1.0)
    rows: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    when_short: WhenShort = "error"
    max_copies: int | None = Field(default=None, ge=2, le=1000)

    @field_validator("score", "strategy", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("ensemble", mode="before")
    @classmethod
    def _by_reducer(cls, value: Any) -> Any:
        return {"reducer": value} if isinstance(value, str) else value

    @field_validator("filters", mode="before")
    @classmethod
    def _filters_by_name(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [{"name": item} if isinstance(item, str) else item for item in value]
        return value

    @model_validator(mode="after")
    def _one_amount(self) -> "Pool":
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give exactly one amount, not {' and '.join(given)}")
        if not given:
            object.__setattr__(self, "interleave_ratio", DEFAULT_INTERLEAVE_RATIO)
        return self

    @model_validator(mode="after")
    def _rules(self) -> "Pool":
        if self.strategy.name == "bottom_gap" and not self.allow_negative_control:
            raise ValueError(
                "bottom_gap picks the worst safe rows, as a negative control: say allow_negative_control: true"
            )
        if (self.when_short == "cycle") != (self.max_copies is not None):
            raise ValueError("give `max_copies` (2 or more) with `when_short: cycle`, and with nothing else")
        if sum(spec.name == "refusal" for spec in self.filters) > 1:
            raise ValueError("give one refusal filter: rule v2 covers v1")
        return self

    @property
    def amount(self) -> AmountName:
        """Which of the four amounts is given."""
        return next(name for name in AMOUNTS if getattr(self, name) is not None)
