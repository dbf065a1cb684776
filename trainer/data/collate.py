"""Batches in the order of the manifest: our own collator, and the check that nothing was reordered.

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

from curator.errors import IntegrityError
from trainer.data.rows import CLASSES, ROW, SAFE

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right: `input_ids` with `pad_id`, `labels` with -100, `attention_mask` with 0."""

    pad_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors (B, T) with T the longest row; `row` and `safe`, (B,); `token_classes`, (B, T), if rows have them."""
        shape = (len(examples), max(len(example["input_ids"]) for example in examples))
        ids_BT = np.full(shape, self.pad_id, dtype=np.int64)
        labels_BT = np.full(shape, -100, dtype=np.int64)
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


class RowCheck:
    """Looks at the rows of each batch before it is used."""

    n_seen = 0

    def see(self, rows: Sequence[int]) -> None:
        """Raise IntegrityError unless these rows may come now."""
        raise NotImplementedError

    def start_at(self, n_rows: int) -> None:
        """Take `n_rows` as seen, for a run that goes on from a checkpoint."""
        self.n_seen = n_rows


class OrderCheck(RowCheck):
    """Follows the positions that training sees: 0, 1, ..., n_rows - 1, and again for each further epoch.

    `start` is the number of rows consumed before, for a run that goes on from a checkpoint.
    """

    def __init__(self, n_rows: int, start: int = 0) -> None:
        self.n_rows = n_rows
        self.n_seen = start

    def see(self, rows: Sequence[int]) -> None:
        """Raise IntegrityError unless these are the next positions."""
        expected = [(self.n_seen + index) % self.n_rows for index in range(len(rows))]
        if list(rows) != expected:
            raise IntegrityError(
                f"training left the order of its rows after {self.n_seen} rows: expected positions "
                f"{expected[:8]}, the batch holds {list(rows)[:8]}; something between the data set and the "
                "model reorders, packs or drops rows"
            )
        self.n_seen += len(rows)


class OnceCheck(RowCheck):
    """For runs with another order: each row once in every epoch, in whatever order."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self._epoch: set[int] = set()

    def see(self, rows: Sequence[int]) -> None:
        """Raise IntegrityError for a row that was seen in this epoch already, or that does not exist."""
        for row in rows:
            if row in self._epoch or not 0 <= row < self.n_rows:
                raise IntegrityError(f"row {row} came twice in one epoch, or is none of the {self.n_rows} rows")
            self._epoch.add(row)
            self.n_seen += 1
            if self.n_seen % self.n_rows == 0:
                self._epoch.clear()


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
