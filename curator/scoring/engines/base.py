"""What an engine is: token ids and response masks in, sums and counts out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from curator.render import Rendered

OnRows = Callable[[int, int], None]
"""Called with (rows, tokens) as they are finished, so that a caller can show progress inside a part."""


@dataclass(frozen=True)
class RowLoss:
    """One row's loss: `nll_sum` in nats over `n_response_tokens` tokens (method.md, "Words").

    `reason` says why `nll_sum` is not finite, where the engine knows.
    """

    nll_sum: float
    n_response_tokens: int
    reason: str | None = None


class Identified(Protocol):
    """What an engine adds to a scorer's identity, known before it is loaded."""

    @property
    def name(self) -> str:
        """Engine name, as in `--engine`."""

    @property
    def version(self) -> str:
        """Version of the engine and of the libraries whose numerics it uses."""

    @property
    def dtype(self) -> str:
        """Dtype of weights and activations, as in torch and resolved: `float32`, `bfloat16`."""


class Engine(Identified, Protocol):
    """A loaded model that scores rows."""

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """One loss for each row, in the order given.

        A response token at position 0 has no logit before it: it is neither summed nor counted. Every row
        must have a countable response token and fit the window; ScoringError otherwise.
        """

    def use_adapter(self, path: Path | None) -> None:
        """Score with this LoRA adapter from now on, or with the base model alone for None."""

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""


@runtime_checkable
class TokenScores(Protocol):
    """An engine that also gives the losses of single tokens."""

    def token_nll(self, row: "Rendered") -> npt.NDArray[np.float64]:
        """The loss of each response token of one row, in order, nats; raises ScoringError as `score`."""


class Launch(Identified, Protocol):
    """How to load an engine. It can be pickled, for other processes."""

    @property
    def device(self) -> str:
        """Device, resolved: `cpu`, `cuda` or `cuda:N`."""

    def __call__(self) -> Engine:
        """Load it."""

    def with_threads(self, n: int) -> "Launch":
        """The same on `n` CPU threads; itself where the engine computes elsewhere."""


class Scores(Protocol):
    """What can score rows again: an engine, or a plain reference."""

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """One loss for each row, in the order given."""


class Reference(Scores, Protocol):
    """A second, independent way to the same losses; `name` says which, for the record."""

    @property
    def name(self) -> str:
        """What it is, with versions."""

    def close(self) -> None:
        """Free its memory."""


ReferenceFactory = Callable[[], Reference]
