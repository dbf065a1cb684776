"""The strict base of every document of the product, and a recipe's words for the order of a mix's rows.

The orders are defined in method.md ("Amount and order") and implemented in `curator.mix.order`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

OrderName = Literal["every_k", "per_batch", "even", "shuffle"]
EpochOrder = Literal["same", "own"]

MAX_EPOCHS = 100
MAX_BATCH_SIZE = 65_536


class Strict(BaseModel):
    """Base of recipes, manifests, settings and answers: unknown keys are refused, built values do not change.

    Infinity and NaN are refused too: JSON cannot hold them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
