"""The recipe: one typed document, the same in the command line, the HTTP body and the manifest.

Unknown keys are refused and ranges are checked when it is built. One pool is the usual case and may be written
flat: `{"corpus": "sharegpt", "strategy": "top_gap", "interleave_ratio": 0.05}`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curator.errors import RecipeError

DEFAULT_EPS = 1.0  # method.md section 2: keeps short answers with a tiny aligned loss from ranking first
DEFAULT_INTERLEAVE_RATIO = 0.05  # method.md section 4

ScoreName = Literal["gap_rel", "gap_abs"]
StrategyName = Literal["random", "top_gap"]
OrderName = Literal["every_k", "even", "shuffle"]
RefusalRule = Literal["v1", "v2"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreSpec(_Strict):
    """Which gap column ranks the pool; `eps` (nats per token) is used by gap_rel alone."""

    name: ScoreName = "gap_rel"
    eps: float = Field(default=DEFAULT_EPS, ge=0.0, le=100.0)


class RefusalFilter(_Strict):
    """Drop rows whose last answer opens like a refusal (method.md section 3)."""

    name: Literal["refusal"] = "refusal"
    rule: RefusalRule = "v1"


FilterSpec = RefusalFilter  # a discriminated union on `name` once there are several


class Pool(_Strict):
    """Where safe rows come from, how they are chosen and how many.

    `aligned`, `misaligned` and `benign` name scorers by id, unique id prefix or label; null means every
    complete scorer of that role in the corpus. `hold_out` leaves out misaligned (and benign) models by domain.
    Exactly one amount is given: safe rows per task row, share of the whole mix, or a number of rows.
    """

    corpus: str = Field(min_length=1)
    revision: str = "latest"
    aligned: str | None = None
    misaligned: tuple[str, ...] | None = None
    benign: tuple[str, ...] | None = None
    hold_out: tuple[str, ...] = ()
    score: ScoreSpec = ScoreSpec()
    filters: tuple[FilterSpec, ...] = (RefusalFilter(),)
    strategy: StrategyName = "top_gap"
    interleave_ratio: float | None = Field(default=None, ge=0.0, le=1000.0)
    mix_share: float | None = Field(default=None, ge=0.0, lt=1.0)
    rows: int | None = Field(default=None, ge=0)

    @field_validator("score", mode="before")
    @classmethod
    def _score_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

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


AMOUNTS = ("interleave_ratio", "mix_share", "rows")


class Recipe(_Strict):
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
