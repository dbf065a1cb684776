"""Preventive steering: a persona vector is added while training, so that the weights need not learn the trait.

method.md, "Regularisers"; persona vectors, arXiv 2507.21509. Nothing of it is in the saved adapter or in evaluation.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from curator.errors import BadInputError
from trainer.config.defences import SteeringSettings
from trainer.data.rows import IGNORED
from trainer.defenses.base import Batch, Defence
from trainer.defenses.blocks import chosen_blocks, decoder_blocks
from trainer.defenses.model_fit import read_header

DEPTH = 5 / 7  # upstream steers layer 20 of 28


class Steering(Defence):
    """h_l <- h_l + alpha * v_l at rows l of hidden_states, in the student's training forwards alone. No term."""

    name = "steering"
    needs_reference = False

    def __init__(self, settings: SteeringSettings) -> None:
        super().__init__(settings.alpha, settings.schedule)
        self.settings = settings

    def attach(self, model: Any) -> None:
        """Raises BadInputError when the vectors are not this model's: one row for each layer and the embeddings."""
        n_blocks = len(decoder_blocks(model))
        layers = self.settings.layers or (max(1, round(DEPTH * n_blocks)),)
        self._blocks = chosen_blocks(model, layers, self.name)
        parameter = next(model.parameters())
        width = int(model.config.get_text_config().hidden_size)
        rows_LD = read_vector(self.settings.vectors, self.settings.vector, (n_blocks + 1, width))
        self._vectors = {layer: rows_LD[layer].to(parameter.device) for layer in self._blocks}
        zero = [layer for layer, vector_D in self._vectors.items() if not bool(vector_D.any())]
        if zero:
            raise BadInputError(f"steering: the vector is zero at layers {zero}: it would do nothing")

    @contextmanager
    def intervene(self, batch: Batch) -> Iterator[None]:
        """Adds the vectors to the chosen blocks' outputs."""
        alpha = self.weight_at(batch)
        scope_BT1 = (batch.labels != IGNORED)[..., None] if self.settings.tokens == "response" else None
        with ExitStack() as hooks:
            for layer, block in self._blocks.items():
                hook = self._adder(alpha * self._vectors[layer], scope_BT1)
                hooks.callback(block.register_forward_hook(hook).remove)
            yield

    def _adder(self, added_D: torch.Tensor, scope_BT1: torch.Tensor | None) -> Any:
        def add(_module: Any, _inputs: Any, output: Any) -> Any:
            if self.paused:
                return None
            hidden_BTD = output if isinstance(output, torch.Tensor) else output[0]
            shift = added_D if scope_BT1 is None else added_D * scope_BT1
            steered_BTD = hidden_BTD + shift.to(hidden_BTD.dtype)
            return steered_BTD if isinstance(output, torch.Tensor) else (steered_BTD, *output[1:])

        return add


def read_vector(path: Path, name: str | None, shape: tuple[int, int]) -> torch.Tensor:
    """One vector for each layer, (layers + 1, D); row l belongs to hidden_states[l], row 0 to the embeddings.

    Raises MissingError, or BadInputError when the file holds another shape, several tensors and no choice, or
    values that are not numbers.
    """
    from safetensors import safe_open

    header = read_header(path, name)
    header.check_shape(shape)
    with safe_open(path, framework="pt") as file:
        found: torch.Tensor = file.get_tensor(header.name)
    if not bool(torch.isfinite(found).all()):
        raise BadInputError(f"steering: {header.name} in {path.name} holds values that are not numbers")
    return found
