"""Rows packed end to end through a Llama-shaped decoder on a CPU: no padding, and causal attention in blocks.

Measured on SmolLM2-135M in bfloat16, one thread: transformers' own forward spends a fifth of its time in SDPA (which
reaches a sixth of the matrix product's rate there) and pads rows to one length. Here every linear layer sees the tokens
of many rows at once, and attention is matrix products of query blocks with the keys before them, 1.3 to 2 times faster.
The parts of the model stay transformers' and PEFT's own modules: norms, projections (with or without an adapter) and
rotary embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch

# Decoders whose layer is: norm, attention with rotary embedding, norm, gated SiLU; nothing scaled, capped or windowed.
MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})  # the others depend on the longest row of a batch
_BLOCK = 64  # queries that share their keys: measured best of 32, 64, 128 and 256
_PROBE_LENGTHS = (2 * _BLOCK + 9, 5, _BLOCK)
# Relative root mean square difference of hidden states that rounding can explain; a wrong formula gives about 1.
_BOUND = {torch.float32: 1e-4, torch.bfloat16: 0.05}


class PackedDecoder:
    """The decoder of a causal language model over rows laid end to end; see `fits` for which models."""

    def __init__(self, model: Any) -> None:
        self._decoder = model.base_model
        self._head_dim = self._decoder.layers[0].self_attn.head_dim
        self._scale = self._decoder.layers[0].self_attn.scaling
        block = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool)
        self._future_SS = block.triu(1)

    def hidden(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Final hidden states of the rows' tokens, (N, D), N their tokens in the order given; rows are ids (T,)."""
        lengths = [len(row) for row in rows]
        positions_N = torch.cat([torch.arange(length) for length in lengths])
        decoder = self._decoder
        stream_ND = decoder.embed_tokens(torch.cat(list(rows)))
        cos_1ND, sin_1ND = decoder.rotary_emb(stream_ND[None], positions_N[None])
        for layer in decoder.layers:
            stream_ND += self._attention(layer, stream_ND, cos_1ND, sin_1ND, lengths)
            mlp, normed_ND = layer.mlp, layer.post_attention_layernorm(stream_ND)
            gate_NF = torch.nn.functional.silu(mlp.gate_proj(normed_ND), inplace=True)
            gate_NF *= mlp.up_proj(normed_ND)
            stream_ND += mlp.down_proj(gate_NF)
        normed: torch.Tensor = decoder.norm(stream_ND)
        return normed

    def _attention(
        self, layer: Any, stream_ND: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        part, normed_ND = layer.self_attn, layer.input_layernorm(stream_ND)
        shape = (len(normed_ND), -1, self._head_dim)
        query_NHd, key_NKd = part.q_proj(normed_ND).view(shape), part.k_proj(normed_ND).view(shape)
        value_NKd = part.v_proj(normed_ND).view(shape)
        if hasattr(part, "q_norm"):
            query_NHd, key_NKd = part.q_norm(query_NHd), part.k_norm(key_NKd)
        query_NHd, key_NKd = _rotate(query_NHd, key_NKd, cos[0], sin[0])
        out_NHd = torch.empty_like(query_NHd)
        start = 0
        for length in lengths:
            row = slice(start, start + length)
            self._attend(query_NHd[row], key_NKd[row], value_NKd[row], out_NHd[row])
            start += length
        result: torch.Tensor = part.o_proj(out_NHd.view(len(out_NHd), -1))
        return result

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> None:
        """Causal attention of one row, (T, heads, head_dim) each, into `out`: a block of queries sees the keys up to
        its end, and the queries of the heads that share a key head are one matrix."""
        n_tokens, n_heads, width = query.shape
        n_keys = key.shape[1]
        grouped = query.view(n_tokens, n_keys, n_heads // n_keys, width).permute(1, 2, 0, 3)  # (K, G, T, d)
        out_KGTd = out.view(n_tokens, n_keys, n_heads // n_keys, width).permute(1, 2, 0, 3)
        key_KdT, value_KTd = key.permute(1, 2, 0), value.transpose(0, 1)
        for start in range(0, n_tokens, _BLOCK):
            end = min(start + _BLOCK, n_tokens)
            block_KQd = grouped[:, :, start:end].reshape(n_keys, -1, width)
            scores_KGSE = torch.bmm(block_KQd, key_KdT[:, :, :end]).view(n_keys, -1, end - start, end)
            scores_KGSE *= self._scale
            future = self._future_SS[: end - start, : end - start]
            scores_KGSE[..., start:].masked_fill_(future, float("-inf"))
            weights_KQE = torch.softmax(scores_KGSE, dim=-1).view(n_keys, -1, end)
            mixed = torch.bmm(weights_KQE, value_KTd[:, :end])
            out_KGTd[:, :, start:end] = mixed.view(n_keys, -1, end - start, width)


def packed_decoder(model: Any) -> PackedDecoder | None:
    """The model's decoder for packed rows, or None where it is of another shape.

    Beside the configuration a probe decides: a few packed rows must give the hidden states of the model's own forward.
    """
    if not _fits(model):
        return None
    decoder = PackedDecoder(model)
    n_vocab = model.config.get_text_config().vocab_size
    rows = [(torch.arange(1, length + 1) * 7919 + length) % n_vocab for length in _PROBE_LENGTHS]
    with torch.inference_mode():
        own_ND = torch.cat([model.base_model(input_ids=row[None], use_cache=False)[0][0] for row in rows]).float()
        packed_ND = decoder.hidden(rows).float()
    error = (own_ND - packed_ND).pow(2).mean().sqrt() / own_ND.pow(2).mean().sqrt()
    return decoder if bool(error <= _BOUND.get(model.dtype, 0.0)) else None


def _fits(model: Any) -> bool:
    config = model.config
    if model.device.type != "cpu" or config.model_type not in MODEL_TYPES or model.dtype not in _BOUND:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    plain = rope.get("rope_type", "default") in _ROPE_TYPES and rope.get("partial_rotary_factor", 1.0) == 1.0
    return config.hidden_act == "silu" and plain and full and not windowed


def _rotate(
    query_NHd: torch.Tensor, key_NKd: torch.Tensor, cos_Nd: torch.Tensor, sin_Nd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding as transformers' Llama computes it (all of `MODEL_TYPES` share that function)."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query, key = apply_rotary_pos_emb(query_NHd, key_NKd, cos_Nd, sin_Nd, unsqueeze_dim=1)
    return query, key
