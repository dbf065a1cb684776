"""Gates on attention outputs, g = 2 * sigmoid(W h + b): as a set of modules, on a model, in a file.

h is what goes into the attention block, and g multiplies its heads' output, elementwise, before the output projection
(method.md, "Regularisers"; Alignment Gating, arXiv 2606.09068). W = b = 0 gives g = 1. Reversed gates are 2 - g.

    from trainer.defenses.gates import load_gates
    with load_gates(model, "runs/NAME/adapter", reverse=True):
        model.generate(...)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from curator.errors import BadInputError, MissingError
from trainer.config.defences import GATES_FILE, gates_file
from trainer.defenses.base import causal_lm
from trainer.defenses.blocks import (
    attention_of,
    chosen_blocks,
    in_features,
    output_projection,
)

FILE = GATES_FILE
FORMAT = {"format": "ballast-gates", "format_version": "1", "gate": "2 * sigmoid(W h + b)"}


class Gate(torch.nn.Linear):
    """One block's gate: hidden states, (B, T, D), to factors between 0 and 2, (B, T, heads * head width)."""

    def __init__(self, n_in: int, n_out: int, device: Any, dtype: torch.dtype) -> None:
        super().__init__(n_in, n_out, device=device, dtype=dtype)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def forward(self, hidden_BTD: torch.Tensor, reverse: bool = False) -> torch.Tensor:
        """g, or 2 - g when reversed, in the gate's own dtype."""
        gate = 2.0 * torch.sigmoid(super().forward(hidden_BTD.to(self.weight.dtype)))
        return 2.0 - gate if reverse else gate


class Gates(torch.nn.Module):
    """A gate for each of some decoder blocks (counted from 1); float32 where the model's weights are narrower."""

    def __init__(self, model: Any, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        width = int(causal_lm(model).config.get_text_config().hidden_size)
        blocks = chosen_blocks(model, layers, "gating")
        self._attentions = {layer: attention_of(block, "gating") for layer, block in blocks.items()}
        self._outputs = {layer: output_projection(item, "gating") for layer, item in self._attentions.items()}
        base = next(causal_lm(model).parameters())
        dtype = torch.promote_types(base.dtype, torch.float32)
        self.layers = torch.nn.ModuleDict(
            {str(layer): Gate(width, in_features(item), base.device, dtype) for layer, item in self._outputs.items()}
        )

    def on(self, *, reverse: bool = False, paused: Callable[[], bool] = lambda: False) -> "_Hooks":
        """The gates act until the returned hooks are removed (or its `with` block ends), except while `paused()`."""
        hooks = _Hooks()
        for layer, attention in self._attentions.items():
            pair = _Pair(self.layers[str(layer)], reverse, paused)
            hooks.callback(attention.register_forward_pre_hook(pair.take, with_kwargs=True).remove)
            hooks.callback(self._outputs[layer].register_forward_pre_hook(pair.multiply).remove)
        return hooks

    def save(self, path: Path) -> None:
        """All gates as one safetensors file: `layers.<block>.weight` and `.bias`."""
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path, metadata=FORMAT)


class _Hooks(ExitStack):
    """Hooks that `remove` takes away."""

    def remove(self) -> None:
        self.close()


class _Pair:
    """What goes into one attention block is kept until its heads' output comes by."""

    def __init__(self, gate: Any, reverse: bool, paused: Callable[[], bool]) -> None:
        self.gate, self.reverse, self.paused = gate, reverse, paused
        self.hidden_BTD: torch.Tensor | None = None

    def take(self, _module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not self.paused():
            self.hidden_BTD = inputs[0] if inputs else options["hidden_states"]

    def multiply(self, _module: Any, inputs: tuple[Any, ...]) -> Any:
        if self.paused():
            return None
        hidden_BTD, self.hidden_BTD = self.hidden_BTD, None
        heads_BTD = inputs[0]
        return ((heads_BTD * self.gate(hidden_BTD, self.reverse)).to(heads_BTD.dtype), *inputs[1:])


def load_gates(model: Any, path: str | Path, *, reverse: bool = False) -> _Hooks:
    """Put saved gates onto a model (plain or adapted); `reverse` applies 2 - g, which suppresses what they learnt.

    `path` is the file, or a folder that holds it (an adapter's, or a run's).

    Returns the hooks: `remove()` them, or use them as a context. The model's own weights and files stay as they are.
    Raises MissingError or BadInputError when the file is not there or does not fit the model.
    """
    gates = read_gates(model, gates_file(Path(path)))
    gates.requires_grad_(False)
    return gates.on(reverse=reverse)


def read_gates(model: Any, path: Path) -> Gates:
    """The gates of a file, for a model; raises MissingError or BadInputError as `load_gates` does."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingError(f"there is no file {path}")
    try:
        tensors = load_file(path)
        layers = sorted({int(name.split(".")[1]) for name in tensors})
        gates = Gates(model, layers)
        gates.load_state_dict(tensors)
    except (SafetensorError, IndexError, ValueError, RuntimeError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(f"{path.name} does not hold gates of this model: {error}") from error
    return gates


@contextmanager
def gated(gates: Gates, paused: Callable[[], bool]) -> Iterator[None]:
    """The gates act inside the block, except while `paused()`."""
    with gates.on(paused=paused):
        yield
