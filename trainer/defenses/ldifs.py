"""LDIFS: keep the features of the aligned model (method.md, "Regularisers"; Mukhoti et al., arXiv 2308.13320)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from trainer.config.defences import LdifsSettings
from trainer.config.rules import ldifs_layers
from trainer.data.rows import IGNORED
from trainer.defenses.base import (
    Batch,
    Defence,
    Seen,
    wide,
)
from trainer.defenses.blocks import chosen_blocks, decoder_blocks
from trainer.defenses.hidden_states import recorded_output


class Ldifs(Defence):
    """`weight` * squared distance of features: each token's residual-stream vectors at some layers, each of length 1.

    Concatenating the layers' vectors makes the squared distance their sum over layers; it is divided by the tokens
    in scope of the whole step (not by layers), so one layer contributes 0 (same direction) to 4 (opposite). A weight
    for features that are scaled otherwise, or averaged over layers or width, is another weight (docs/defences.md).
    """

    name = "ldifs"

    def __init__(self, settings: LdifsSettings) -> None:
        super().__init__(settings.weight, settings.schedule)
        self.settings = settings

    def attach(self, model: Any) -> None:
        """Raises BadInputError when the layers are not there, or none is left."""
        layers = ldifs_layers(self.settings, len(decoder_blocks(model)))
        self._blocks = chosen_blocks(model, layers, self.name)

    @contextmanager
    def observe(self, seen: Seen) -> Iterator[None]:
        """Records the chosen blocks' outputs."""
        with ExitStack() as hooks:
            for layer, block in self._blocks.items():
                hooks.enter_context(recorded_output(block, _entry(layer), seen))
            yield

    def term(self, student: Seen, reference: Seen, batch: Batch) -> torch.Tensor:
        """This micro-batch's sum over layers and tokens in scope / tokens in scope of the step."""
        if self.settings.tokens == "response":
            in_scope_BT, n_step = batch.labels != IGNORED, batch.counts.n_response
        else:
            in_scope_BT, n_step = batch.real, batch.counts.n_tokens
        total = torch.zeros((), dtype=wide(reference[_entry(min(self._blocks))]), device=batch.labels.device)
        for layer in self._blocks:
            unit_ND = _unit(student[_entry(layer)][in_scope_BT])
            unit0_ND = _unit(reference[_entry(layer)][in_scope_BT])
            total = total + (unit_ND - unit0_ND).square().sum()
        return self.acting(total / max(n_step, 1))


def _entry(layer: int) -> str:
    return f"hidden_states[{layer}]"


def _unit(hidden_ND: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(hidden_ND.to(wide(hidden_ND)), dim=-1)
