"""The strict base of every document of the product, and a recipe's words for the order of a mix's rows.

The orders are defined in method.md ("Amount and order") and implemented in `curator.mix.order`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

OrderName = Literal["every_k", "per_batch", "even", "shuffle"]
EpochOrder = Literal["same", "own"]

CORPUS_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
MAX_NAMES = 256
CorpusName = Annotated[str, Field(pattern=CORPUS_PATTERN)]
Name = Annotated[str, Field(max_length=200)]  # of a scorer, a domain or a value of a label
Names = Annotated[tuple[Name, ...], Field(max_length=MAX_NAMES)]

MAX_EPOCHS = 100
MAX_BATCH_SIZE = 65_536


class Strict(BaseModel):
    """Base of recipes, manifests, settings and answers: unknown keys are refused, built values do not change.

    Infinity and NaN are refused too: JSON cannot hold them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Spec(Strict):
    """Base of what a recipe, a policy or an audit's options say: ids are hashes of these, so -0.0 is written 0.0."""

    @field_validator("*", mode="after")
    @classmethod
    def _without_negative_zero(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _unsigned(item) for key, item in value.items()}
        return _unsigned(value)


def _unsigned(value: Any) -> Any:
    return value + 0.0 if isinstance(value, float) else value  # -0.0 + 0.0 is 0.0
