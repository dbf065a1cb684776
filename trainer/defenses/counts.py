"""What terms are divided by: counts over a whole optimiser step, so that accumulation changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from curator.render import POSTFIX, PREFIX, QUERY
from trainer.data import CLASSES, SAFE


@dataclass(frozen=True)
class StepCounts:
    """Counts over all micro-batches (and processes) of one optimiser step."""

    n_response: int  # response tokens that have a logit
    n_predicted: int  # real tokens that have a logit: every one but each row's first
    n_rows: int
    n_safe_response: int = 0  # the same two, in rows of a safe pool
    n_safe_predicted: int = 0
    n_prefix: int = 0  # tokens by class; 0 where classes were not asked for
    n_query: int = 0
    n_postfix: int = 0

    @property
    def n_tokens(self) -> int:
        """Real tokens, each row's first one included."""
        return self.n_predicted + self.n_rows

    @classmethod
    def of(cls, batches: Sequence[Mapping[str, Any]]) -> Self:
        """The counts of one process's micro-batches (the collator's tensors)."""
        totals = [0] * 8
        for batch in batches:
            response_BT, predicted_BT = batch["labels"][:, 1:] != -100, batch["attention_mask"][:, 1:] != 0
            safe_B = batch[SAFE] if SAFE in batch else batch["labels"].new_zeros(len(response_BT), dtype=bool)
            found = [response_BT.sum(), predicted_BT.sum(), len(response_BT)]
            found += [response_BT[safe_B].sum(), predicted_BT[safe_B].sum()]
            classes = (
                [(batch[CLASSES] == kind).sum() for kind in (PREFIX, QUERY, POSTFIX)] if CLASSES in batch else [0] * 3
            )
            totals = [total + int(n) for total, n in zip(totals, found + classes, strict=True)]
        return cls(*totals)
