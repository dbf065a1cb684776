"""Alignment gating: gates learn what the fine-tune would change; reversed they suppress it (see `gates`)."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from trainer.config.defences import GatingSettings
from trainer.defenses.base import Batch, Defence
from trainer.defenses.gates import (
    FILE,
    Gates,
    gated,
    read_gates,
)


class Gating(Defence):
    """Trains gates and nothing else: the adapter stays at its start. They act in training forwards alone. No term."""

    name = "gating"
    needs_reference = False

    def __init__(self, settings: GatingSettings) -> None:
        super().__init__(1.0, settings.schedule)
        self.settings = settings

    def attach(self, model: Any) -> None:
        """Freezes the adapter and hangs the gates on the adapted model's outside, where savers do not look."""
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.gates = Gates(model, self.settings.layers)
        # A submodule, so that the optimiser, devices and other processes find it; PEFT saves adapter weights only.
        model.add_module("ballast_gates", self.gates)
        self._model = model

    def intervene(self, batch: Batch) -> AbstractContextManager[None]:
        """The gates act on the training forward."""
        return gated(self.gates, lambda: self.paused)

    def save(self, folder: Path) -> list[str]:
        """gates.safetensors beside the adapter."""
        self.gates.save(folder / FILE)
        return [FILE]

    def load(self, folder: Path) -> None:
        """Take up gates.safetensors of a checkpoint."""
        self.gates.load_state_dict(read_gates(self._model, folder / FILE).state_dict())
