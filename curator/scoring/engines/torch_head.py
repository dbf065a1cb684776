"""From hidden states to losses: logits for response positions only, in chunks of bounded memory."""

from collections.abc import Callable
from typing import Any

import torch

# Bytes of float32 logits held at once. On a CPU larger chunks leave the caches and gain nothing.
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
# Rows of logits that are widened together: on a CPU few, whose float32 copy stays in the caches (twice as fast).
_WIDENED = {"cpu": 8}
_N_PROBE = 8  # tokens of the check at load time

Logits = Callable[[torch.Tensor], torch.Tensor]


def response_nll(hidden_ND: torch.Tensor, targets_N: torch.Tensor, logits: Logits, n_vocab: int) -> torch.Tensor:
    """Minus the log-probability of each target, (N,), float64, nats.

    Logits are widened to float32 before the log-sum-exp, whatever the model's dtype; they exist for one chunk
    of positions at a time.
    """
    nll_N = torch.empty(len(targets_N), dtype=torch.float64, device=hidden_ND.device)
    n_chunk = max(16, CHUNK_BYTES.get(hidden_ND.device.type, CHUNK_BYTES["cpu"]) // (4 * n_vocab))
    for start in range(0, len(targets_N), n_chunk):
        part = slice(start, start + n_chunk)
        _fill_nll(nll_N[part], logits(hidden_ND[part]), targets_N[part])
    return nll_N


def _fill_nll(nll_C: torch.Tensor, logits_CV: torch.Tensor, targets_C: torch.Tensor) -> None:
    n_widened = _WIDENED.get(logits_CV.device.type, len(nll_C))
    for start in range(0, len(nll_C), n_widened):
        part = slice(start, start + n_widened)
        nll_C[part] = torch.nn.functional.cross_entropy(logits_CV[part].float(), targets_C[part], reduction="none")


class SplitModel:
    """A causal language model as a decoder and a head, so that the head can run on chosen positions.

    When the parts do not reproduce the model's own logits (`exact` is False) the
    caller must use `own_logits`, which is slower and always right.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config.get_text_config()
        # Granite divides its logits, Cohere multiplies them, Gemma 2 and 3 cap them.
        self._divide = getattr(config, "logits_scaling", None)
        self._multiply = getattr(config, "logit_scale", None)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self.exact = self._matches_own_forward()

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Final hidden states, (B, T, D). No attention mask: padding stands right of every real token, and
        in a causal model no token sees what is right of it."""
        hidden_BTD: torch.Tensor = self.model.base_model(input_ids=ids_BT, use_cache=False)[0]
        return hidden_BTD

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states, (N, V), with the model's scale and cap."""
        logits_NV: torch.Tensor = self.model.get_output_embeddings()(hidden_ND)
        if self._divide:
            logits_NV = logits_NV / self._divide
        if self._multiply:
            logits_NV = logits_NV * self._multiply
        if self._cap:
            logits_NV = torch.tanh(logits_NV / self._cap) * self._cap
        return logits_NV

    def own_logits(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Logits of every position by the model's own forward, (B, T, V)."""
        logits_BTV: torch.Tensor = self.model(input_ids=ids_BT, use_cache=False).logits
        return logits_BTV

    def _matches_own_forward(self) -> bool:
        """Whether decoder and head reproduce the model's own logits up to rounding, on a few tokens."""
        if self.model.get_output_embeddings() is None or self.model.base_model is self.model:
            return False
        device = next(self.model.parameters()).device
        n_vocab = self.model.config.get_text_config().vocab_size
        ids_BT = (torch.arange(1, _N_PROBE + 1, device=device) * 7919 % n_vocab)[None]
        with torch.inference_mode():
            own_TV = self.own_logits(ids_BT)[0]
            try:
                split_TV = self.logits(self.hidden(ids_BT)[0])
            except (RuntimeError, TypeError, AttributeError):  # a decoder of another shape: use its own forward
                return False
        if own_TV.shape != split_TV.shape:
            return False
        bound = 4 * torch.finfo(own_TV.dtype).eps * own_TV.abs().max()
        return bool((own_TV - split_TV).abs().max() <= bound)
