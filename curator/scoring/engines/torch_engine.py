"""The default engine: transformers models on torch, on a CPU or one CUDA device.

Batches are length-sorted and bounded by tokens, rows are packed without padding where `torch_packed` knows the model,
the head runs on response positions only, and one base model stays resident while adapters are switched.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from curator.errors import ScoringError
from curator.scoring.engines.base import OnRows, RowLoss
from curator.scoring.engines.batching import plan_batches, plan_packs
from curator.scoring.engines.native_memory import bound_kernels, give_back
from curator.scoring.engines.torch_folder import check_acts
from curator.scoring.engines.torch_head import SplitModel, response_nll
from curator.scoring.engines.torch_merge import load_merged
from curator.scoring.engines.torch_model import (
    Adapters,
    DeviceName,
    engine_version,
    load_model,
    resolve_device,
    resolve_dtype,
)
from curator.scoring.engines.torch_packed import PackedDecoder, packed_decoder
from curator.scoring.identity import check_adapter_dir, model_window

if TYPE_CHECKING:
    from curator.render import Rendered

FloatArray = npt.NDArray[np.float64]
NAME = "torch"
# Tokens in one forward pass, padding included. Packed rows on a CPU: 2,048 is 7 to 10 % faster than 512; a GPU needs
# more to be busy.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768}
_OWN_LOGITS_BYTES = 256 * 2**20  # bound of a batch's logits where the model's own forward must be used


class TorchEngine:
    """`base.Engine` over a Hugging Face model folder."""

    name = NAME
    _packed: PackedDecoder | None

    def __init__(
        self,
        model_dir: Path,
        *,
        device: DeviceName = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        merge: bool = False,
    ) -> None:
        bound_kernels()
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.version = engine_version()
        self._model_dir, self._merge, self._asked_tokens = model_dir, merge, batch_tokens
        self._window = model_window(model_dir)
        self._merged: Path | None = None
        self._take(load_model(model_dir, self.device, self.dtype))

    def hookable_model(self) -> Any:
        """The transformers model that scores, for hooks on it.

        From now on its own forward runs: packed rows call the projections of a block without the block itself, so that
        hooks on attention modules would never fire.
        """
        self._packed = None
        return self._split.model

    def use_adapter(self, path: Path | None) -> None:
        """Score with this LoRA adapter from now on, or with the base model alone for None.

        With `merge` the model is loaded anew whenever that changes: in main memory beside the one in use, which stays
        when BadInputError says that the adapter does not fit. One that changes nothing is refused, too.
        """
        if path is not None:
            check_adapter_dir(path)
            check_acts(path)
        if not self._merge:
            self._adapters.use(path)
        elif path != self._merged:
            if path is None:
                model = load_model(self._model_dir, "cpu", self.dtype)
            else:
                model = load_merged(self._model_dir, path, self.dtype)
            del self._split, self._packed, self._adapters  # a device need not hold both
            self._take(model.to(self.device))
            self._merged = path

    def _check_window(self, rows: "Sequence[Rendered]") -> None:
        longest = max((row.n_tokens for row in rows), default=0)
        if self._window is not None and longest > self._window:
            raise ScoringError(
                f"a row of {longest:,} tokens exceeds the model's own window of {self._window:,}: leave it out"
            )

    def _take(self, model: Any) -> None:
        self._split = SplitModel(model)
        self._packed = packed_decoder(model) if self._split.exact else None
        self._adapters = Adapters(model)
        self._n_vocab = int(model.config.get_text_config().vocab_size)
        self.batch_tokens = self._asked_tokens or BATCH_TOKENS[torch.device(self.device).type]
        if not self._split.exact:
            self.batch_tokens = min(self.batch_tokens, max(1, _OWN_LOGITS_BYTES // (4 * self._n_vocab)))

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """One loss for each row, in the order given; see `base.Engine.score`."""
        self._check_window(rows)
        inputs = [_row_input(row, self._n_vocab) for row in rows]
        losses: dict[int, RowLoss] = {}
        with torch.inference_mode():
            plan = plan_packs if self._packed else plan_batches
            for batch in plan([len(ids) for ids, _, _ in inputs], self.batch_tokens):
                losses.update(zip(batch, self._fitting([inputs[index] for index in batch]), strict=True))
                if on_rows is not None:
                    on_rows(len(batch), sum(rows[index].n_tokens for index in batch))
        if self.device == "cpu":
            give_back()
        return [losses[index] for index in range(len(rows))]

    def token_nll(self, row: "Rendered") -> FloatArray:
        """The loss of each response token of one row, (N,), float64, nats, in order: the summands of `score`'s sum.

        Raises as `score`.
        """
        self._check_window([row])
        with torch.inference_mode():
            return self._losses([_row_input(row, self._n_vocab)])

    def close(self) -> None:
        """Free the model's memory."""
        del self._split, self._packed, self._adapters
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
        row_N = np.repeat(np.arange(len(inputs)), [len(targets) for _, _, targets in inputs])
        sums_B = np.bincount(row_N, weights=self._losses(inputs), minlength=len(inputs))
        return [RowLoss(float(nll_sum), len(targets)) for nll_sum, (_, _, targets) in zip(sums_B, inputs, strict=True)]

    def _losses(self, inputs: "list[_RowInput]") -> FloatArray:
        """Losses of the targets of all rows, one row after the other, (N,)."""
        lengths = [len(ids) for ids, _, _ in inputs]
        fed: torch.Tensor | list[torch.Tensor]
        if self._packed:
            fed, starts = [torch.from_numpy(ids) for ids, _, _ in inputs], np.cumsum([0, *lengths[:-1]])
        else:
            fed, starts = _padded(inputs).to(self.device), max(lengths) * np.arange(len(inputs))
        flat_N = np.concatenate([start + positions for start, (_, positions, _) in zip(starts, inputs, strict=True)])
        targets_N = np.concatenate([targets for _, _, targets in inputs])
        nll_N = self._nll(fed, *(torch.from_numpy(array).to(self.device) for array in (flat_N, targets_N)))
        found: FloatArray = nll_N.cpu().numpy()
        return found

    def _nll(
        self, fed: torch.Tensor | list[torch.Tensor], flat_N: torch.Tensor, targets_N: torch.Tensor
    ) -> torch.Tensor:
        """Losses of the targets, (N,); `fed` is padded ids (B, T), or rows of ids to pack; `flat_N` counts tokens
        through all of them."""
        if isinstance(fed, list):
            assert self._packed is not None
            return response_nll(self._packed.hidden(fed)[flat_N], targets_N, self._split.logits, self._n_vocab)
        if self._split.exact:
            hidden_ND = self._split.hidden(fed).flatten(0, 1)[flat_N]
            return response_nll(hidden_ND, targets_N, self._split.logits, self._n_vocab)
        logits_NV = self._split.own_logits(fed).flatten(0, 1)[flat_N]
        return response_nll(logits_NV, targets_N, lambda chunk_CV: chunk_CV, self._n_vocab)


# Ids that are fed, positions whose logits are used, and the tokens they predict.
_RowInput = tuple[np.ndarray, np.ndarray, np.ndarray]


def _row_input(row: "Rendered", n_vocab: int) -> _RowInput:
    """What one row feeds: tokens from the first to just before the last response token (causal: the rest
    changes nothing). The token at position 0 has no logit and is left out."""
    positions = np.flatnonzero(row.loss_mask).astype(np.int64)
    if not len(positions):
        raise ScoringError("a row without a countable response token reached the engine")
    ids = np.asarray(row.input_ids, dtype=np.int64)
    if ids.max() >= n_vocab:
        raise ScoringError(f"token id {ids.max()}, the model has {n_vocab}: this is another model's tokenizer")
    return ids[: positions[-1] + 1], positions, ids[positions + 1]


def _padded(inputs: "list[_RowInput]") -> torch.Tensor:
    """Ids on the left of (B, T); any valid id pads, for nothing looks at it."""
    ids_BT = np.zeros((len(inputs), max(len(ids) for ids, _, _ in inputs)), dtype=np.int64)
    for index, (ids, _, _) in enumerate(inputs):
        ids_BT[index, : len(ids)] = ids
    return torch.from_numpy(ids_BT)
