"""Inoculation by an adapter: a finished one that has the trait stays on the model while another is trained.

Ours after preventive steering (persona vectors, arXiv 2507.21509) and inoculation prompts: what the frozen adapter does
already, the new one need not learn. Nothing of it is in what is saved, nor in any pass but the training forward.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from curator.errors import BadInputError
from curator.scoring.engines.torch_folder import check_acts, check_adapter
from trainer.config.defences import InoculationAdapterSettings
from trainer.defenses.base import Batch, Defence, causal_lm
from trainer.runs.weights import AdapterFile


@dataclass(frozen=True)
class _Factors:
    """One layer's change of weight, `scale` * B A, in the dtype of the model."""

    a_RI: torch.Tensor
    b_OR: torch.Tensor
    scale: float

    def added(self, strength: float, paused: Callable[[], bool]) -> Any:
        """A forward hook that adds strength * scale * B A x to what the layer gives."""

        def add(_module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
            if paused():
                return None
            low_BTR = linear(inputs[0].to(self.a_RI.dtype), self.a_RI)
            return output + (strength * self.scale * linear(low_BTR, self.b_OR)).to(output.dtype)

        return add


class InoculationAdapter(Defence):
    """y <- y + scale * (B A) x at the frozen adapter's layers, in the student's training forwards alone. No term."""

    name = "inoculation_adapter"
    needs_reference = False

    def __init__(self, settings: InoculationAdapterSettings) -> None:
        super().__init__(settings.scale, settings.schedule)
        self.settings = settings

    def attach(self, model: Any) -> None:
        """The factors stay outside of the model's modules: no optimiser, saver or reference pass finds them there.

        Raises BadInputError for an adapter that does not fit the model, changes nothing, or is more than the factors
        of linear layers.
        """
        folder, lm = self.settings.adapter, causal_lm(model)
        file = AdapterFile.read(folder)
        if others := file.others():
            raise BadInputError(
                f"{self.name}: {folder} holds {others[0]} beside the factors of linear layers: take an adapter of "
                "linear layers alone"
            )
        check_acts(folder)
        places = dict(lm.named_modules())
        dtype = next(p.dtype for p in lm.parameters() if p.is_floating_point())
        fitted = check_adapter(lm, folder).get_base_model()  # PEFT's own layers, which know the scale of each
        self._layers: list[tuple[Any, _Factors]] = []
        for pair in file.pairs():
            device = next(places[pair.module].parameters()).device
            (scale,) = fitted.get_submodule(pair.module).scaling.values()
            factors = _Factors(pair.a_RI.to(device, dtype), pair.b_OR.to(device, dtype), float(scale))
            self._layers.append((places[pair.module], factors))

    @contextmanager
    def intervene(self, batch: Batch) -> Iterator[None]:
        """The frozen adapter acts beside the trained one."""
        strength = self.weight_at(batch)
        with ExitStack() as hooks:
            for module, factors in self._layers:
                hook = factors.added(strength, lambda: self.paused)
                hooks.callback(module.register_forward_hook(hook).remove)
            yield
