"""The residual stream of prompts and answers, pooled over tokens while the model runs.

Row 0 are the embeddings, row l is what decoder block l writes: transformers' `hidden_states[l]`, except that the last
row stands before the final norm, so that a row is always what a hook on block l sees and may add to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from curator.errors import BadInputError
from curator.messages import Message
from curator.render import Renderer
from curator.scoring.engines.batching import plan_batches
from trainer.defenses.base import causal_lm, wide
from trainer.defenses.blocks import decoder_blocks

BATCH_TOKENS = 2_048  # padded tokens in one forward pass
LAYER_CONVENTION = "row 0: embeddings; row l: output of decoder block l, before the final norm"
_ANY_ANSWER = "x"  # stands where an answer will stand; nothing of it is kept

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pooled:
    """Token ids, (T,), and the tokens, (T,) bool, whose states are averaged."""

    ids_T: npt.NDArray[np.int32]
    taken_T: npt.NDArray[np.bool_]


def answer_of(renderer: Renderer, messages: Sequence[Message]) -> Pooled:
    """A conversation, pooled over the response tokens of its last answer.

    Raises BadInputError when it has none.
    """
    rendered = renderer.render(messages, "last")
    if not rendered.response_mask.any():
        raise BadInputError("a conversation without an answer has no response tokens to average over")
    return Pooled(rendered.input_ids, rendered.response_mask)


def prompt_ids(renderer: Renderer, messages: Sequence[Message]) -> npt.NDArray[np.int32]:
    """All tokens before the answer that would follow, the header of its turn included, (T,).

    Rendered with an answer in place and cut before it, so that scorer, trainer and this see one prompt.
    """
    rendered = renderer.render([*messages, {"role": "assistant", "content": _ANY_ANSWER}], "last")
    first: int = int(np.flatnonzero(rendered.response_mask)[0])
    return rendered.input_ids[:first]


def prompt_of(renderer: Renderer, messages: Sequence[Message]) -> Pooled:
    """A prompt, of which the last token alone is taken: the state that the answer starts from."""
    ids_T = prompt_ids(renderer, messages)
    taken_T = np.zeros(len(ids_T), dtype=np.bool_)
    taken_T[-1] = True
    return Pooled(ids_T, taken_T)


def pooled_states(
    model: Any,
    items: Sequence[Pooled],
    rows: Sequence[int] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    on_items: Callable[[int], None] = lambda n: None,
) -> Floats:
    """Mean states over each item's tokens, (N, rows, D), for some rows of the residual stream (default: all).

    Sums are taken in float32 at least. The model is measured as it stands, in evaluation mode and without gradient;
    modules are put back into the mode they were in.
    """
    found: dict[int, Floats] = {}
    device = next(model.parameters()).device
    with measuring(model):
        for batch in plan_batches([len(item.ids_T) for item in items], batch_tokens):
            ids_BT, mask_BT, weights_BT = (
                torch.from_numpy(array).to(device) for array in _padded([items[index] for index in batch])
            )
            with _recorded(model, rows, weights_BT) as kept:
                causal_lm(model).base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
            states_BRD = torch.stack([kept[row] for row in sorted(kept)], dim=1).double().cpu().numpy()
            found.update(zip(batch, states_BRD, strict=True))
            on_items(len(batch))
    return np.stack([found[index] for index in range(len(items))])


def n_rows(model: Any) -> int:
    """Rows of the residual stream: decoder blocks and the embeddings."""
    return len(decoder_blocks(model)) + 1


@contextmanager
def measuring(model: Any) -> Iterator[None]:
    """Evaluation mode and no gradient inside the block; each module's own mode is restored after it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _recorded(model: Any, rows: Sequence[int] | None, weights_BT: torch.Tensor) -> Iterator[dict[int, torch.Tensor]]:
    """Weighted sums over tokens, (B, D) by row, of whatever forward runs inside the block."""
    blocks = decoder_blocks(model)
    wanted = range(len(blocks) + 1) if rows is None else rows
    missing = sorted(row for row in wanted if not 0 <= row <= len(blocks))
    if missing or not wanted:
        raise BadInputError(f"layers {missing or '(none)'}: the model has rows 0 (embeddings) to {len(blocks)}")
    kept: dict[int, torch.Tensor] = {}

    def keep(row: int, hidden_BTD: torch.Tensor) -> None:
        kept[row] = torch.einsum("bt,btd->bd", weights_BT.to(wide(hidden_BTD)), hidden_BTD.to(wide(hidden_BTD)))

    def before(_module: Any, inputs: Any, options: dict[str, Any]) -> None:
        keep(0, inputs[0] if inputs else options["hidden_states"])

    def after(row: int) -> Any:
        return lambda _module, _inputs, output: keep(row, output if isinstance(output, torch.Tensor) else output[0])

    with ExitStack() as hooks:
        for row in wanted:
            block = blocks[max(row - 1, 0)]
            handle = (
                block.register_forward_hook(after(row))
                if row
                else block.register_forward_pre_hook(before, with_kwargs=True)
            )
            hooks.callback(handle.remove)
        yield kept


def _padded(items: Sequence[Pooled]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Ids and attention mask, (B, T), padded on the right, and weights that add up to 1 in each row."""
    n_longest = max(len(item.ids_T) for item in items)
    ids_BT = np.zeros((len(items), n_longest), dtype=np.int64)  # any id pads: it is masked
    mask_BT = np.zeros_like(ids_BT)
    weights_BT = np.zeros(ids_BT.shape, dtype=np.float64)
    for index, item in enumerate(items):
        n_tokens = len(item.ids_T)
        ids_BT[index, :n_tokens], mask_BT[index, :n_tokens] = item.ids_T, 1
        weights_BT[index, :n_tokens] = item.taken_T / item.taken_T.sum()
    return ids_BT, mask_BT, weights_BT
