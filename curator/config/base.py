"""What every piece of a recipe shares: unknown keys are refused, and a built document does not change."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of the recipe's documents."""

    model_config = ConfigDict(extra="forbid", frozen=True)
