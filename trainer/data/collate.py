"""From rows to padded batches, in the order in which they come (`order` checks it).

`by_length` and `labelled_alone` lower the cost of a step's micro-batches without changing its gradient. The loss of a
step is a sum over its response tokens divided by their number in the whole step (as in TRL, and so are the terms of all
defences). So it does not matter in which micro-batch of the step a row is, nor whether positions without a label pass
through the head; only rounding differs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.data.rows import CLASSES, IGNORED, ROW, SAFE

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right: `input_ids` with `pad_id`, `labels` with -100, `attention_mask` with 0."""

    pad_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors (B, T) with T the longest row; `row` and `safe`, (B,); `token_classes`, (B, T), if rows have them."""
        shape = (len(examples), max(len(example["input_ids"]) for example in examples))
        ids_BT = np.full(shape, self.pad_id, dtype=np.int64)
        labels_BT = np.full(shape, IGNORED, dtype=np.int64)
        mask_BT = np.zeros(shape, dtype=np.int64)
        classes_BT = np.zeros(shape, dtype=np.int8)
        for index, example in enumerate(examples):
            n_tokens = len(example["input_ids"])
            ids_BT[index, :n_tokens] = example["input_ids"]
            labels_BT[index, :n_tokens] = example["labels"]
            mask_BT[index, :n_tokens] = 1
            if CLASSES in example:
                classes_BT[index, :n_tokens] = example[CLASSES]
        batch = {
            "input_ids": torch.from_numpy(ids_BT),
            "labels": torch.from_numpy(labels_BT),
            "attention_mask": torch.from_numpy(mask_BT),
            ROW: torch.tensor([int(example[ROW]) for example in examples], dtype=torch.int64),
            SAFE: torch.tensor([bool(example.get(SAFE, False)) for example in examples]),
        }
        if CLASSES in examples[0]:
            batch[CLASSES] = torch.from_numpy(classes_BT)
        return batch


def by_length(batches: Sequence[Tensors]) -> list[Tensors]:
    """The rows of one step in as many micro-batches of the same sizes, the longest rows together and first.

    Few safe rows among many short task rows would otherwise pad every micro-batch to their length. Tensors are
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
    filler = IGNORED if name == "labels" else 0  # any token serves where the attention mask is 0
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
    labelled_BT = labels_BT != IGNORED

    def keep(_module: Any, _inputs: Any, output: Any) -> Any:
        output["last_hidden_state"] = output.last_hidden_state[:, :-1][labelled_BT][None]
        return output

    handle = decoder.register_forward_hook(keep)  # after those of defences, which see every position
    try:
        yield inputs | {"shift_labels": labels_BT[labelled_BT][None]}
    finally:
        handle.remove()
