"""What every piece of a recipe shares: unknown keys are refused, and a built document does not change.

The recipe's words for the order of a mix's rows (method.md, "Amount and order", and `curator.mix.order`).
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

OrderName = Literal["every_k", "per_batch", "even", "shuffle"]
EpochOrder = Literal["same", "own"]

MAX_EPOCHS = 100
MAX_BATCH_SIZE = 65_536


class Strict(BaseModel):
    """Base of the recipe's documents."""

    model_config = ConfigDict(extra="forbid", frozen=True)
