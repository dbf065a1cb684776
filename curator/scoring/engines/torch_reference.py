"""The plain reference: one row at a time, the model's own forward, every logit, log-softmax in float32.

It shares nothing with the engines but the weights: no batches, no padding, no split head, eager attention.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curator.scoring.engines.base import OnRows, RowLoss
from curator.scoring.engines.torch_model import load_plain, torch, transformers

if TYPE_CHECKING:
    from curator.render import Rendered


class TorchReference:
    """`base.Reference` over a model folder and an optional adapter, unmerged."""

    def __init__(self, model_dir: Path, adapter_dir: Path | None, *, device: str, dtype: str) -> None:
        self.name = f"transformers {transformers.__version__} row by row, {dtype} on {device.partition(':')[0]}"
        self._device = device
        self._model = load_plain(model_dir, adapter_dir, device, dtype)

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """One loss for each row, in the order given."""
        losses = []
        with torch.inference_mode():
            for row in rows:
                losses.append(self._one(row))
                if on_rows is not None:
                    on_rows(1, row.n_tokens)
        return losses

    def close(self) -> None:
        """Free the model's memory."""
        del self._model
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _one(self, row: "Rendered") -> RowLoss:
        ids_T = torch.from_numpy(np.asarray(row.input_ids, dtype=np.int64)).to(self._device)
        mask_T = torch.from_numpy(np.asarray(row.loss_mask, dtype=bool)).to(self._device)
        logits_TV = self._model(input_ids=ids_T[None], use_cache=False).logits[0]
        log_probs_TV = torch.log_softmax(logits_TV[:-1].float(), dim=-1)
        picked_T = log_probs_TV.gather(1, ids_T[1:, None])[:, 0]
        return RowLoss(-float(picked_T[mask_T].double().sum()), row.n_response_tokens)
