"""What a step's micro-batches cost on the way to the same gradient.

The loss of a step is a sum over its response tokens divided by their number in the whole step (as in TRL, and so do the
terms of all defences). So it does not matter which micro-batch of the step a row is in, nor that positions without a
label go through the head: only rounding tells.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def by_length(batches: Sequence[Tensors]) -> list[Tensors]:
    """The rows of one step in as many micro-batches of the same sizes, the longest rows together and first.

    Few safe rows among many short task rows would otherwise stretch every micro-batch to their length. Tensors are
    (B,) or (B, T) and hold an `attention_mask`, padded on the right; each result is as wide as its longest row.
    """
    if len(batches) < 2:
        return list(batches)
    sizes = [len(batch["attention_mask"]) for batch in batches]
    widest = max(batch["attention_mask"].shape[1] for batch in batches)
    whole = {name: torch.cat([_widened(name, batch[name], widest) for batch in batches]) for name in batches[0]}
    n_tokens = whole["attention_mask"].sum(1)
    order = torch.argsort(n_tokens, descending=True, stable=True)
    return [_taken(whole, part, int(n_tokens[part].max())) for part in torch.split(order, sizes)]


def _widened(name: str, tensor: torch.Tensor, widest: int) -> torch.Tensor:
    if tensor.dim() < 2:
        return tensor
    filler = -100 if name == "labels" else 0  # any token serves where the attention mask is 0
    return torch.nn.functional.pad(tensor, (0, widest - tensor.shape[1]), value=filler)


def _taken(whole: Tensors, rows: torch.Tensor, width: int) -> Tensors:
    return {name: tensor[rows] if tensor.dim() < 2 else tensor[rows, :width] for name, tensor in whole.items()}


@contextmanager
def labelled_alone(decoder: Any, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Inputs for TRL's fused head under which it computes logits of labelled positions alone.

    TRL does so itself where it has a Triton kernel; elsewhere its head sees prompts and padding too, about half of the
    positions. `decoder` is the model without its head. Inside the block it gives the hidden states of those positions
    alone, (1, N, D), and `shift_labels` (1, N) in the inputs tell TRL that nothing is left to shift.
    """
    labels_BT = inputs["labels"][:, 1:]
    labelled_BT = labels_BT != -100

    def keep(_module: Any, _inputs: Any, output: Any) -> Any:
        output["last_hidden_state"] = output.last_hidden_state[:, :-1][labelled_BT][None]
        return output

    handle = decoder.register_forward_hook(keep)  # after those of defences, which see every position
    try:
        yield inputs | {"shift_labels": labels_BT[labelled_BT][None]}
    finally:
        handle.remove()
