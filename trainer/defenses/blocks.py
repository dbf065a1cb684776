"""Where hooks sit: a transformers model's decoder blocks, their attention, and its projections.

Block b (counted from 1) writes the residual stream that transformers calls `hidden_states[b]`; row 0 are the
embeddings. (The last row of `hidden_states` has the final norm applied; here every row is the block's own output.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from curator.errors import BadInputError
from trainer.config.rules import check_layers
from trainer.defenses.base import causal_lm

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_OUTPUT = ("o_proj", "c_proj", "out_proj", "dense")
_KEY_NORMS = ("k_norm", "k_layernorm")


@dataclass(frozen=True)
class Part:
    """Columns of a module's output, (B, T, columns); None: all of them, heads flattened."""

    module: Any
    columns: slice | None = None


def decoder_blocks(model: Any) -> list[Any]:
    """The blocks in order; raises BadInputError when the model does not list them."""
    lm = causal_lm(model)
    n_blocks = int(lm.config.get_text_config().num_hidden_layers)
    for module in lm.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_blocks:
            return list(module)
    raise BadInputError(
        f"{type(lm).__name__}: no list of {n_blocks} decoder blocks was found, so ldifs, treft, steering, gating and "
        "the monitor have nowhere to act: leave them out, or take a decoder model whose blocks are one list"
    )


def chosen_blocks(model: Any, layers: Sequence[int] | None, name: str) -> dict[int, Any]:
    """Blocks by number, all of them by default; raises BadInputError for numbers that the model lacks."""
    blocks = dict(enumerate(decoder_blocks(model), start=1))
    if layers is None:
        return blocks
    check_layers(layers, len(blocks), name)
    return {layer: blocks[layer] for layer in sorted(layers)}


def attention_of(block: Any, name: str) -> Any:
    """A block's self-attention module."""
    return _child(block, _ATTENTION, name)


def output_projection(attention: Any, name: str) -> Any:
    """The projection that the heads' output passes through before it joins the residual stream."""
    return _child(attention, _OUTPUT, name)


def in_features(projection: Any) -> int:
    """Width of what a linear layer takes, adapted or not (GPT-2's Conv1D calls it nx)."""
    base = getattr(projection, "base_layer", projection)
    return int(base.in_features if hasattr(base, "in_features") else base.nx)


def key_value_parts(attention: Any, config: Any, name: str) -> tuple[Part, Part]:
    """Where keys and values come out, before positions are rotated in (which changes no norm).

    Keys after their norm where the model has one. Raises BadInputError for layouts that are not known.
    """
    if hasattr(attention, "k_proj") and hasattr(attention, "v_proj"):
        norm = next((norm for norm in _KEY_NORMS if isinstance(getattr(attention, norm, None), torch.nn.Module)), None)
        return Part(getattr(attention, norm) if norm else attention.k_proj), Part(attention.v_proj)
    if hasattr(attention, "c_attn"):  # GPT-2: queries, keys, values of one width
        width = int(config.hidden_size)
        return (
            Part(attention.c_attn, slice(width, 2 * width)),
            Part(attention.c_attn, slice(2 * width, 3 * width)),
        )
    if hasattr(attention, "qkv_proj"):  # Phi-3
        head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        start, width = head * int(config.num_attention_heads), head * int(config.num_key_value_heads)
        return (
            Part(attention.qkv_proj, slice(start, start + width)),
            Part(attention.qkv_proj, slice(start + width, start + 2 * width)),
        )
    raise BadInputError(f"{name}: {type(attention).__name__} has no key and value projections that are known here")


def _child(module: Any, names: Sequence[str], defence: str) -> Any:
    for name in names:
        if isinstance(getattr(module, name, None), torch.nn.Module):
            return getattr(module, name)
    raise BadInputError(f"{defence}: {type(module).__name__} has none of {', '.join(names)}")
