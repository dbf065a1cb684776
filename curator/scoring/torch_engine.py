"""The default engine: transformers models on torch, on a CPU or one CUDA device.

Batches are length-sorted and bounded by tokens, the head runs on response positions only, and one base model
stays resident while adapters are switched.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from curator.errors import ScoringError
from curator.scoring.batching import plan_batches
from curator.scoring.engine import OnRows, RowLoss
from curator.scoring.torch_head import SplitModel, response_nll
from curator.scoring.torch_model import (
    Adapters,
    DeviceName,
    engine_version,
    load_model,
    resolve_device,
    resolve_dtype,
)

if TYPE_CHECKING:
    from curator.render import Rendered

NAME = "torch"
# Padded tokens in one forward pass. Measured flat from 1,000 to 4,000 on a CPU; a GPU needs more to be busy.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768}
_OWN_LOGITS_BYTES = 256 * 2**20  # bound of a batch's logits where the model's own forward must be used


class TorchEngine:
    """`engine.Engine` over a Hugging Face model folder."""

    name = NAME

    def __init__(
        self,
        model_dir: Path,
        *,
        device: DeviceName = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.version = engine_version()
        model = load_model(model_dir, self.device, self.dtype)
        self._split = SplitModel(model)
        self._adapters = Adapters(model)
        self._n_vocab = int(model.config.get_text_config().vocab_size)
        self.batch_tokens = batch_tokens or BATCH_TOKENS[torch.device(self.device).type]
        if not self._split.exact:
            self.batch_tokens = min(self.batch_tokens, max(1, _OWN_LOGITS_BYTES // (4 * self._n_vocab)))

    @property
    def model(self) -> Any:
        """The transformers model that scores, for hooks on it."""
        return self._split.model

    def use_adapter(self, path: Path | None) -> None:
        """Score with this LoRA adapter from now on, or with the base model alone for None."""
        self._adapters.use(path)

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """One loss for each row, in the order given; see `engine.Engine.score`."""
        inputs = [_row_input(row, self._n_vocab) for row in rows]
        losses: dict[int, RowLoss] = {}
        with torch.inference_mode():
            for batch in plan_batches([len(ids) for ids, _, _ in inputs], self.batch_tokens):
                losses.update(zip(batch, self._fitting([inputs[index] for index in batch]), strict=True))
                if on_rows is not None:
                    on_rows(len(batch), sum(rows[index].n_tokens for index in batch))
        return [losses[index] for index in range(len(rows))]

    def close(self) -> None:
        """Free the model's memory."""
        del self._split, self._adapters
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _fitting(self, inputs: "list[_RowInput]") -> list[RowLoss]:
        """A batch's losses; one that does not fit into memory is halved, down to a row that does not fit alone."""
        try:
            return self._score_batch(inputs)
        except torch.OutOfMemoryError:
            if len(inputs) == 1:
                raise
        # Outside of the handler: the error's frames hold the batch's memory.
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        half = len(inputs) // 2
        return [*self._fitting(inputs[:half]), *self._fitting(inputs[half:])]

    def _score_batch(self, inputs: "list[_RowInput]") -> list[RowLoss]:
        n_longest = max(len(ids) for ids, _, _ in inputs)
        ids_BT = np.zeros((len(inputs), n_longest), dtype=np.int64)  # any valid id pads: nothing looks at it
        for index, (ids, _, _) in enumerate(inputs):
            ids_BT[index, : len(ids)] = ids
        row_N = np.repeat(np.arange(len(inputs)), [len(targets) for _, _, targets in inputs])
        flat_N = row_N * n_longest + np.concatenate([positions for _, positions, _ in inputs])
        targets_N = np.concatenate([targets for _, _, targets in inputs])
        nll_N = self._nll(*(torch.from_numpy(array).to(self.device) for array in (ids_BT, flat_N, targets_N)))
        sums_B = np.bincount(row_N, weights=nll_N.cpu().numpy(), minlength=len(inputs))
        return [RowLoss(float(nll_sum), len(targets)) for nll_sum, (_, _, targets) in zip(sums_B, inputs, strict=True)]

    def _nll(self, ids_BT: torch.Tensor, flat_N: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        if self._split.exact:
            hidden_ND = self._split.hidden(ids_BT).flatten(0, 1)[flat_N]
            return response_nll(hidden_ND, targets_N, self._split.logits, self._n_vocab)
        logits_NV = self._split.own_logits(ids_BT).flatten(0, 1)[flat_N]
        return response_nll(logits_NV, targets_N, lambda chunk_CV: chunk_CV, self._n_vocab)


# Ids that are fed, positions whose logits are used, and the tokens they predict.
_RowInput = tuple[np.ndarray, np.ndarray, np.ndarray]


def _row_input(row: "Rendered", n_vocab: int) -> _RowInput:
    """What one row feeds: tokens from the first to just before the last response token (causal: the rest
    changes nothing). The token at position 0 has no logit and is left out."""
    positions = np.flatnonzero(row.response_mask[1:]).astype(np.int64)
    if not len(positions):
        raise ScoringError("a row without a countable response token reached the engine")
    ids = np.asarray(row.input_ids, dtype=np.int64)
    if ids.max() >= n_vocab:
        raise ScoringError(f"token id {ids.max()}, the model has {n_vocab}: this is another model's tokenizer")
    return ids[: positions[-1] + 1], positions, ids[positions + 1]
