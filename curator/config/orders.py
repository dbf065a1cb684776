"""The recipe's words for the order of a mix's rows (method.md, "Amount and order", and `curator.orders`)."""

from typing import Literal

OrderName = Literal["every_k", "per_batch", "even", "shuffle"]
EpochOrder = Literal["same", "own"]

MAX_EPOCHS = 100
MAX_BATCH_SIZE = 65_536
