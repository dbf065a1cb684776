"""KL regularisation: stay close to the aligned model's next-token distributions (method.md, "Regularisers").

The decoder's final hidden states of student and reference are taken by hooks, and only chunks of positions
are ever turned into logits. For a chunk the gradient with respect to the student's logits is written out
(it is known in closed form) and carried to the hidden states at once, so nothing of size vocabulary is kept.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from curator.errors import BadInputError
from curator.scoring.engines.torch_head import SplitModel
from trainer.config.defences import KlDirection, KlSettings
from trainer.data.rows import IGNORED
from trainer.defenses.base import (
    FINAL_HIDDEN,
    Batch,
    Defence,
    Seen,
    causal_lm,
)
from trainer.defenses.hidden_states import recorded_output
from trainer.defenses.reference import reference_state

CHUNK_BYTES = 32 * 2**20  # logits of one model held at once
BLOCK_BYTES = 2**20  # of these, what is worked on at a time on a CPU: about what a core's own cache holds

Logits = Callable[[torch.Tensor], torch.Tensor]


class Kl(Defence):
    """`weight` * KL in nats per token, over every predicted token or the response tokens alone.

    `rows="safe"` (selective): only in a mix's safe rows, divided by their tokens. `estimator="sampled"`: a random share
    of the positions, scaled up by 1 / share, so that its expectation is the full term.
    """

    name = "kl"

    def __init__(self, settings: KlSettings) -> None:
        super().__init__(settings.weight, settings.schedule)
        self.settings = settings

    def attach(self, model: Any) -> None:
        """Raises BadInputError for a model whose head cannot be run apart from its decoder."""
        lm = causal_lm(model)
        with reference_state(model):  # dropout would make the check of the split fail
            split = SplitModel(lm)
        if not split.exact:
            raise BadInputError(
                f"kl: the head of {type(lm).__name__} cannot be run apart from its decoder, so kl cannot be taken in "
                "chunks: leave --kl out (--ldifs needs no head), or take a model whose logits are its head on the last "
                "hidden state"
            )
        self._decoder, self._logits = lm.base_model, split.logits
        # Empty under LoRA; under full fine-tuning the head learns from the term as well.
        self._head = [p for p in lm.get_output_embeddings().parameters() if p.requires_grad]
        self._n_vocab = int(lm.config.get_text_config().vocab_size)

    def observe(self, seen: Seen) -> AbstractContextManager[None]:
        """Records the decoder's final hidden states."""
        return recorded_output(self._decoder, FINAL_HIDDEN, seen)

    def term(self, student: Seen, reference: Seen, batch: Batch) -> torch.Tensor:
        """This micro-batch's KL sum over the positions in scope / their number in the whole step (nats per token)."""
        in_scope_BT, n_step = self._scope(batch)
        if self.settings.estimator == "sampled":
            in_scope_BT = in_scope_BT & kept_positions(batch, self.settings.sample_share)[:, 1:]
        hidden_ND = student[FINAL_HIDDEN][:, :-1][in_scope_BT]
        hidden0_ND = reference[FINAL_HIDDEN][:, :-1][in_scope_BT]
        n_chunk = even_chunk(len(hidden_ND), max(16, CHUNK_BYTES // (hidden_ND.element_size() * self._n_vocab)))

        def logits0(hidden0_CD: torch.Tensor) -> torch.Tensor:
            with reference.weights():
                return self._logits(hidden0_CD)

        heads = Heads(self._logits, self._head, logits0)
        kl_sum = chunked_kl_sum(hidden_ND, hidden0_ND, heads, self.settings.direction, n_chunk)
        if self.settings.estimator == "sampled":
            kl_sum = kl_sum / self.settings.sample_share
        return self.acting(kl_sum / max(n_step, 1))

    def _scope(self, batch: Batch) -> tuple[torch.Tensor, int]:
        """Positions whose next token counts, (B, T - 1), and how many the whole step has."""
        counts, safe = batch.counts, self.settings.rows == "safe"
        if self.settings.tokens == "response":
            in_scope_BT, n_step = batch.labels[:, 1:] != IGNORED, counts.n_safe_response if safe else counts.n_response
        else:
            in_scope_BT = batch.attention_mask[:, 1:] != 0
            n_step = counts.n_safe_predicted if safe else counts.n_predicted
        if safe:
            if batch.safe is None:
                raise BadInputError("kl: the rows do not say which of them are safe")
            in_scope_BT = in_scope_BT & batch.safe[:, None]
        return in_scope_BT, n_step


def even_chunk(n_rows: int, n_most: int) -> int:
    """Rows of each chunk when `n_rows` are split into as few chunks of at most `n_most` as will do, of like size."""
    return math.ceil(n_rows / math.ceil(n_rows / n_most)) if n_rows else n_most


def kept_positions(batch: Batch, share: float) -> torch.Tensor:
    """A random share of the positions, (B, T) bool: a hash of step, row and position, so that neither batch size nor
    the generators of dropout and of the adapter's start have a part in it."""
    n_batch, n_tokens = batch.input_ids.shape
    device = batch.input_ids.device
    rows_B = batch.rows if batch.rows is not None else torch.arange(n_batch, device=device)
    key_BT = (rows_B[:, None] << 20) + torch.arange(n_tokens, device=device) + (batch.step << 44)
    # splitmix64's finaliser in wrapping int64 arithmetic; shifted words are masked, as the shift keeps the sign.
    key_BT = key_BT * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        key_BT = (key_BT ^ ((key_BT >> shift) & ((1 << (64 - shift)) - 1))) * factor
    key_BT = key_BT ^ ((key_BT >> 31) & ((1 << 33) - 1))
    return ((key_BT >> 11) & ((1 << 53) - 1)).double() / 2**53 < share


@dataclass(frozen=True)
class Heads:
    """Logits of hidden states under both models: the student's head, what of it is trained, and the reference's head
    (default: the student's)."""

    student: Logits
    parameters: Sequence[torch.Tensor] = ()
    reference: Logits | None = None


def chunked_kl_sum(
    hidden_ND: torch.Tensor, hidden0_ND: torch.Tensor, heads: Heads, direction: KlDirection, n_chunk: int
) -> torch.Tensor:
    """Sum over N positions of the KL between the two next-token distributions, in nats (a scalar).

    Differentiable once, in the student's hidden states and head parameters; never in the reference.
    """
    logits = (heads.student, heads.reference or heads.student)
    result: torch.Tensor = _KlSum.apply(hidden_ND, hidden0_ND, logits, direction, n_chunk, *heads.parameters)
    return result


class _KlSum(torch.autograd.Function):  # type: ignore[misc]
    """Computes value and gradient in one pass over chunks; backward only scales what forward found."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        hidden0_ND: torch.Tensor,
        heads: tuple[Logits, Logits],
        direction: KlDirection,
        n_chunk: int,
        *head_parameters: torch.Tensor,
    ) -> torch.Tensor:
        kl_sum = torch.zeros((), dtype=_wide(hidden_ND.dtype), device=hidden_ND.device)
        grad_hidden_ND = torch.zeros_like(hidden_ND)
        grad_head = [torch.zeros_like(parameter) for parameter in head_parameters]
        spare_CV: torch.Tensor | None = None  # one buffer for all chunks' gradients
        for start in range(0, len(hidden_ND), n_chunk):
            part = slice(start, start + n_chunk)
            with torch.enable_grad():
                leaf_CD = hidden_ND[part].detach().requires_grad_()
                logits_CV = heads[0](leaf_CD)
            if spare_CV is None:
                spare_CV = torch.empty_like(logits_CV)
            n_rows = len(logits_CV)
            kl_C, grad_CV = kl_and_grad(logits_CV.detach(), heads[1](hidden0_ND[part]), direction, spare_CV[:n_rows])
            kl_sum += kl_C.sum()
            inputs = [leaf_CD, *head_parameters]
            grads = torch.autograd.grad(logits_CV, inputs, grad_CV)
            grad_hidden_ND[part] = grads[0]
            for total, piece in zip(grad_head, grads[1:], strict=True):
                total += piece
        ctx.save_for_backward(grad_hidden_ND, *grad_head)
        return kl_sum

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        grad_hidden_ND, *grad_head = ctx.saved_tensors
        scaled = [(grad_output * grad).to(grad.dtype) for grad in grad_head]
        return ((grad_output * grad_hidden_ND).to(grad_hidden_ND.dtype), None, None, None, None, *scaled)


def kl_and_grad(
    logits_CV: torch.Tensor, logits0_CV: torch.Tensor, direction: KlDirection, grad_CV: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of each position, (C,), and its gradient in the student's logits, (C, V), in their dtype.

    `grad_CV` is written to if it is given. A few rows at a time, so that the passes over them stay in a core's cache.
    """
    if grad_CV is None:
        grad_CV = torch.empty_like(logits_CV)
    wide, (n_rows, n_vocab) = _wide(logits_CV.dtype), logits_CV.shape
    n_block = n_rows if logits_CV.is_cuda else max(1, BLOCK_BYTES // (4 * n_vocab))
    found = []
    for start in range(0, n_rows, n_block):
        part = slice(start, start + n_block)
        found.append(_rows_kl(logits_CV[part].to(wide), logits0_CV[part].to(wide), direction, grad_CV[part]))
    return torch.cat(found) if found else logits_CV.new_zeros(0, dtype=wide), grad_CV


def _rows_kl(z_RV: torch.Tensor, z0_RV: torch.Tensor, direction: KlDirection, grad_RV: torch.Tensor) -> torch.Tensor:
    """KL of some rows, (R,); its gradient goes to `grad_RV`.

    With p = softmax(z), q = softmax(z0), d = z - z0 and c = logsumexp(z0) - logsumexp(z): log p - log q = d + c, so
    KL(p||q) = <p, d> + c with gradient p (log p - log q - KL) = p (d - <p, d>), in which c falls out; and
    KL(q||p) = -<q, d> - c with gradient p - q. A row's logsumexp is its largest logit minus the log of that one's
    probability, so no logarithm of the whole vocabulary is taken.
    """
    p_RV, q_RV = torch.softmax(z_RV, dim=-1), torch.softmax(z0_RV, dim=-1)
    shift_R = (z0_RV.amax(-1) - z_RV.amax(-1)) - (q_RV.amax(-1).log() - p_RV.amax(-1).log())
    d_RV = z_RV - z0_RV
    if direction == "student_reference":
        mean_R = torch.linalg.vecdot(p_RV, d_RV)
        grad_RV.copy_(d_RV.sub_(mean_R[:, None]).mul_(p_RV))
        return mean_R + shift_R
    mean_R = torch.linalg.vecdot(q_RV, d_RV)
    grad_RV.copy_(p_RV.sub_(q_RV))
    return -mean_R - shift_R


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Probabilities are taken in float32 at least, and the value summed in it."""
    return torch.float64 if dtype == torch.float64 else torch.float32
