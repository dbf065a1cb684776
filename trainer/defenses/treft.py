"""TReFT: keep the keys and values of template tokens (method.md, "Regularisers"; arXiv 2606.06667)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from curator.errors import BadInputError
from trainer.config.defences import TreftSettings
from trainer.data.rows import CLASS_CODES
from trainer.defenses.base import (
    Batch,
    Defence,
    Seen,
    causal_lm,
    wide,
)
from trainer.defenses.blocks import (
    Part,
    attention_of,
    chosen_blocks,
    key_value_parts,
)
from trainer.defenses.hidden_states import recorded_output
from trainer.defenses.reference import reference_state


class Treft(Defence):
    """`weight` * mean over tokens in scope of max(0, d - hinge).

    d is a token's mean over layers of |k - k0|^2 / |k0|^2 + |v - v0|^2 / |v0|^2, k and v with all heads side by side.
    The mean is over the tokens in scope of the whole step. So `weight` multiplies a mean over layers of a sum of two
    relative distances (keys, values), each normalised token by token: a weight of the authors' code carries over only
    if that divides in the same way (for a sum over layers, multiply by their number; docs/defences.md). The last chosen
    layer's attention output and MLP cannot change the term.
    """

    name = "treft"

    def __init__(self, settings: TreftSettings) -> None:
        super().__init__(settings.weight, settings.schedule)
        self.settings = settings

    def attach(self, model: Any) -> None:
        """Raises BadInputError when layers or key and value projections are not there."""
        config = causal_lm(model).config.get_text_config()
        self._parts: dict[str, Part] = {}
        self._layers = list(chosen_blocks(model, self.settings.layers, self.name).items())
        for layer, block in self._layers:
            keys, values = key_value_parts(attention_of(block, self.name), config, self.name)
            self._parts |= {_entry("keys", layer): keys, _entry("values", layer): values}
        self._heads_first = self._probe(model, int(getattr(config, "num_key_value_heads", 0)) + 1)

    def _probe(self, model: Any, n_tokens: int) -> set[str]:
        """Entries of shape (B, heads, T, width): some models transpose before they normalise keys."""
        seen, ids_BT = Seen(), torch.ones((1, n_tokens), dtype=torch.int64, device=next(model.parameters()).device)
        with reference_state(model), self.observe(seen):
            causal_lm(model).base_model(input_ids=ids_BT, use_cache=False)
        return {name for name in self._parts if seen[name].dim() == 4 and seen[name].shape[2] == n_tokens}

    @contextmanager
    def observe(self, seen: Seen) -> Iterator[None]:
        """Records keys and values of the chosen layers."""
        with ExitStack() as hooks:
            for name, part in self._parts.items():
                hooks.enter_context(recorded_output(part.module, name, seen))
            yield

    def reference_length(self, batch: Batch) -> int:
        """Up to the last token in scope: in a causal model no later token changes its keys and values."""
        in_scope_T = self._scope(batch)[0].any(dim=0)
        return int(in_scope_T.nonzero().max()) + 1 if bool(in_scope_T.any()) else 1

    def term(self, student: Seen, reference: Seen, batch: Batch) -> torch.Tensor:
        """This micro-batch's sum over tokens in scope / tokens in scope of the step."""
        in_scope_BT, n_step = self._scope(batch)
        distance_N: Any = 0.0  # (N,)
        for name, part in self._parts.items():
            found_ND = self._tokens(student, name, part, in_scope_BT)
            found0_ND = self._tokens(reference, name, part, in_scope_BT)
            distance_N = distance_N + _relative(found_ND, found0_ND)
        excess_N = torch.relu(distance_N / len(self._layers) - self.settings.hinge)
        return self.acting(excess_N.sum() / max(n_step, 1))

    def _tokens(self, seen: Seen, name: str, part: Part, in_scope_BT: torch.Tensor) -> torch.Tensor:
        """The part at the tokens in scope, (N, columns); the reference may be shorter than the batch."""
        output = seen[name].transpose(1, 2) if name in self._heads_first else seen[name]
        found_ND = output[in_scope_BT[:, : output.shape[1]]].flatten(1)
        return found_ND if part.columns is None else found_ND[:, part.columns]

    def _scope(self, batch: Batch) -> tuple[torch.Tensor, int]:
        counts, tokens = batch.counts, self.settings.tokens
        if tokens == "all":
            return batch.real, counts.n_tokens
        if batch.classes is None:
            raise BadInputError("treft: the rows were rendered without token classes")
        n_step = {"prefix": counts.n_prefix, "query": counts.n_query, "postfix": counts.n_postfix}[tokens]
        return batch.classes == CLASS_CODES[tokens], n_step


def _entry(what: str, layer: int) -> str:
    return f"{what} of layer {layer}"


def _relative(found_ND: torch.Tensor, found0_ND: torch.Tensor) -> torch.Tensor:
    """|x - x0|^2 / |x0|^2 of each token, (N,)."""
    found0_ND = found0_ND.to(wide(found0_ND))
    tiny = torch.finfo(found0_ND.dtype).tiny
    return (found_ND - found0_ND).square().sum(-1) / found0_ND.square().sum(-1).clamp_min(tiny)
