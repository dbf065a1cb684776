"""Safe rows of a mix that are held back until the monitor's drift rises.

They stay in their places of the mix's order, which is checked as ever; while they are held back their tokens carry no
loss. So the number of safe rows in a step follows the drift, and no row is moved, left out or repeated.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch

from trainer.config.monitor import ReserveSettings
from trainer.data.rows import IGNORED, ROW


def reserve_rows(safe: Sequence[bool], share: float) -> list[int]:
    """Places of the rows held in reserve: `share` of the safe rows, spread evenly among them."""
    exact = Fraction(str(share))
    places = [place for place, is_safe in enumerate(safe) if is_safe]
    return [place for n, place in enumerate(places) if int((n + 1) * exact) > int(n * exact)]


class Reserve:
    """The reserve of a run. `on`: its rows are trained; off until a measurement says so."""

    def __init__(self, settings: ReserveSettings, safe: Sequence[bool]) -> None:
        self.bound = settings.bound
        self.rows = torch.tensor(reserve_rows(safe, settings.share))
        self.on = False

    def judge(self, figure: float) -> bool:
        """Whether the steps after this measurement train the reserve."""
        self.on = figure > self.bound
        return self.on

    def held_back(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches as they come, without loss on rows of the reserve while it is off."""
        return map(self._held_back, batches)

    def _held_back(self, batch: dict[str, Any]) -> dict[str, Any]:
        held_B = torch.isin(batch[ROW], self.rows.to(batch[ROW].device))
        if self.on or not bool(held_B.any()):
            return batch
        return {**batch, "labels": torch.where(held_B[:, None], IGNORED, batch["labels"])}
