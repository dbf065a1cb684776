"""What is measured at a checkpoint: drift along the directions, and drift of keys and values on the prefix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from curator.errors import BadInputError, RenderError
from curator.messages import Message
from curator.render import PREFIX, Renderer
from trainer.config.defences import TreftSettings
from trainer.data.rows import IGNORED
from trainer.defenses.base import Batch, Seen, StepCounts
from trainer.defenses.reference import reference_state, run_decoder
from trainer.defenses.treft import Treft
from trainer.monitor.directions import Directions
from trainer.persona.activations import (
    Floats,
    measuring,
    pooled_states,
    prompt_of,
)


class TraitProbe:
    """Mean projection of the prompts' last-token states on each direction, over step 0's mean state length, minus
    step 0: a vector of drift, (K,). Step 0 is the model with its adapter off, measured when this is built."""

    def __init__(
        self, model: Any, renderer: Renderer, directions: Directions, prompts: Sequence[Sequence[Message]]
    ) -> None:
        self._directions = directions
        self._items = [prompt_of(renderer, prompt) for prompt in prompts]
        with reference_state(model):
            start_ND = self._states(model)
        self.start_norm = float(np.linalg.norm(start_ND, axis=1).mean())
        self._start_K = self._projection(start_ND)

    def drift(self, model: Any) -> Floats:
        """The drift of the model as it stands, (K,)."""
        return np.asarray(self._projection(self._states(model)) - self._start_K)

    def _states(self, model: Any) -> Floats:
        return np.asarray(pooled_states(model, self._items, [self._directions.layer])[:, 0])

    def _projection(self, states_ND: Floats) -> Floats:
        return np.asarray((states_ND @ self._directions.unit_KD.T).mean(axis=0) / self.start_norm)


class PrefixProbe:
    """TReFT's distance as a measurement: mean over prefix tokens and layers of |k - k0|^2 / |k0|^2 plus the same of
    values. `reason` says why there is none (no prefix, a layout that is not known)."""

    def __init__(self, model: Any, renderer: Renderer, prompt: Sequence[Message]) -> None:
        self.reason: str | None = None
        self._treft = Treft(TreftSettings(weight=1.0, tokens="prefix"))
        try:
            self._batch = _prefix_batch(renderer, prompt, next(model.parameters()).device)
            self._treft.attach(model)
        except (BadInputError, RenderError) as error:
            self.reason = error.message
            return
        with reference_state(model):
            self._start = self._seen(model)

    def drift(self, model: Any) -> float | None:
        """The distance of the model as it stands from step 0; None where there is none."""
        if self.reason is not None:
            return None
        with measuring(model):
            term = self._treft.term(self._seen(model), self._start, self._batch)
        return float(term)

    def _seen(self, model: Any) -> Seen:
        seen = Seen()
        with measuring(model), self._treft.observe(seen):
            run_decoder(model, self._batch)
        # Under full fine-tuning nothing of step 0 may share memory with what training changes.
        return Seen({name: tensor.clone() for name, tensor in seen.tensors.items()})


def _prefix_batch(renderer: Renderer, prompt: Sequence[Message], device: torch.device) -> Batch:
    """The tokens before the user's text alone: in a causal model nothing after them changes their keys and values."""
    rendered = renderer.render([*prompt, {"role": "assistant", "content": "x"}], classes=True)
    assert rendered.token_classes is not None
    ids_T = rendered.input_ids[rendered.token_classes == PREFIX].astype(np.int64)
    if not len(ids_T):
        raise BadInputError("the chat template puts no token before the user's text")
    ids_BT = torch.from_numpy(ids_T)[None].to(device)
    counts = StepCounts(n_response=0, n_predicted=len(ids_T) - 1, n_rows=1, n_prefix=len(ids_T))
    return Batch(
        ids_BT, torch.full_like(ids_BT, IGNORED), torch.ones_like(ids_BT), counts, 0,
        classes=torch.full_like(ids_BT, PREFIX),
    )  # fmt: skip
