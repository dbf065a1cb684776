"""Peak memory of a training run, estimated from config.json, the weight files' headers and the settings.

Bytes of one training step at its largest moment, as torch allocates them; libraries, a GPU's context (some 0.5 GiB) and
the allocator's fragments are not in it. With B rows of T tokens in a micro-batch, D width, V vocabulary, w bytes of a
weight, and a = 4 bytes (adapters, gates, norms and terms are float32 beside narrower weights), the parts are

    weights       w each (NF4: 0.53 in linear layers); a frozen copy where full fine-tuning has a reference
    adapter       4 rank (n_in + n_out) for each adapted layer
    gradients     as large as what is trained
    optimiser     twice as large (AdamW)
    activations   what autograd keeps until the backward pass, B T times the sum of `block_token_bytes` over blocks;
                  with gradient checkpointing a block's input
                  alone (w D); what gating and steering add is among them
    working       the largest of what is there for a moment only: the head; a block's backward pass (with gradient
                  checkpointing the whole block again); the terms of defences, which are passed back before the head

The head never holds logits of (B, T, V): TRL computes them in tiles of at most 4,096 labelled positions and 32,768
words, KL in chunks of 32 MiB. Ours, counted on the code of transformers, PEFT and TRL; held to measured peaks by
tests/trainer/loop/test_memory.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson

from curator.scoring.identity import adapter_shapes
from trainer.config import ALL_LINEAR, TrainConfig
from trainer.config.rules import ldifs_layers
from trainer.data.rows import IGNORED, PreparedRows
from trainer.defenses.model_fit import ModelShape, first_number, text_settings
from trainer.runs.weights import WeightFiles, lora_config

if TYPE_CHECKING:
    from trainer.config.defences import DefenceSettings

WIDE = 4  # bytes of a number in adapters, gates, norms and terms
NF4 = 0.53  # bytes of a packed weight, its share of the scales included
KL_CHUNK = 32 * 2**20  # trainer.defenses.kl.CHUNK_BYTES, which torch would be loaded for
TILE_POSITIONS, TILE_WORDS = 4_096, 32_768  # TRL's head (trl.kernels.chunked_logprob)
TEMPLATE_TOKENS = 64  # of a row before the user's text, or between it and the answer: what treft usually looks at
GIB = 2**30
# Defences without a term: what they add, or their factors, is kept through the backward pass like other activations.
_KEPT = ("gating", "steering", "inoculation_adapter")
_PLAIN_MLP = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "codegen")
_HEADS, _INNER = ("num_attention_heads", "n_head"), ("intermediate_size", "n_inner", "ffn_dim")


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block: the last part of its name, whose output it takes, and what goes in and out of it."""

    name: str
    takes: Literal["attention norm", "heads", "mlp norm", "activation"]
    n_in: int
    n_out: int


@dataclass(frozen=True)
class DecoderShape:
    """What memory depends on. `linears` are those of one block; `n_parameters` counts the whole model."""

    n_blocks: int
    width: int
    n_inner: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    n_vocab: int
    gated_mlp: bool
    written_attention: bool  # scores of all pairs of tokens are held (eager attention)
    linears: tuple[Linear, ...]
    n_parameters: int

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """From config.json; parameters from the weight files' headers where there are any. None where config.json
        does not say enough."""
        text = text_settings(folder)
        found = cls.from_settings(text)
        if found is None:
            return None
        with WeightFiles(folder, headers_only=True) as weights:
            loaded = _indexed(folder) or set(weights.names())
            n_parameters = sum(math.prod(weights.shape(name)) for name in weights.names() if name in loaded)
        return replace(found, n_parameters=n_parameters) if n_parameters else found

    @classmethod
    def from_settings(cls, text: Mapping[str, Any]) -> Self | None:
        """From the settings in config.json alone, as a Llama has its layers (or a GPT-2, for families like it); blocks
        of experts are taken for dense ones."""
        document = dict(text)
        basic = ModelShape.from_settings(document)
        linears: list[tuple[str, Any, int, int]]
        n_heads, n_vocab = first_number(document, _HEADS), first_number(document, ("vocab_size",))
        if basic.n_blocks is None or basic.width is None or n_heads is None or n_vocab is None:
            return None
        width, gated = basic.width, document.get("model_type") not in _PLAIN_MLP
        n_inner = first_number(document, _INNER) or 4 * width
        n_kv_heads = first_number(document, ("num_key_value_heads",)) or n_heads
        head_width = first_number(document, ("head_dim",)) or width // n_heads
        n_query, n_kv = n_heads * head_width, n_kv_heads * head_width
        if document.get("model_type") == "gpt2":
            linears = [("c_attn", "attention norm", width, 3 * width), ("c_proj", "heads", width, width)]
            linears += [("c_fc", "mlp norm", width, n_inner), ("c_proj", "activation", n_inner, width)]
        else:
            linears = [("q_proj", "attention norm", width, n_query), ("k_proj", "attention norm", width, n_kv)]
            linears += [("v_proj", "attention norm", width, n_kv), ("o_proj", "heads", n_query, width)]
            linears += [("gate_proj", "mlp norm", width, n_inner)] if gated else []
            linears += [("up_proj", "mlp norm", width, n_inner), ("down_proj", "activation", n_inner, width)]
        n_block = sum(n_in * n_out for _, _, n_in, n_out in linears) + 2 * width
        n_embeddings = n_vocab * width * (1 if document.get("tie_word_embeddings") else 2)
        return cls(
            n_blocks=basic.n_blocks, width=width, n_inner=n_inner, n_heads=n_heads, n_kv_heads=n_kv_heads,
            head_width=head_width, n_vocab=n_vocab, gated_mlp=gated,
            written_attention=document.get("attn_logit_softcapping") is not None,
            linears=tuple(Linear(*item) for item in linears),
            n_parameters=basic.n_blocks * n_block + n_embeddings + width,
        )  # fmt: skip

    @property
    def n_query(self) -> int:
        """Columns of the queries, and of the heads' output."""
        return self.n_heads * self.head_width

    @property
    def n_linear(self) -> int:
        """Weights in the blocks' linear layers."""
        return self.n_blocks * sum(item.n_in * item.n_out for item in self.linears)


@dataclass(frozen=True)
class Work:
    """The largest micro-batch: B rows of T tokens of which `n_labelled` are trained, and how the model is held."""

    n_rows: int
    n_tokens: int
    n_labelled: int
    weight_bytes: int
    on_gpu: bool
    checkpointing: bool

    @classmethod
    def of(cls, config: TrainConfig, prepared: PreparedRows | None, dtype: str, device: str) -> Self:
        """The longest rows in one micro-batch, as a step puts its rows together by length; rows that are not read yet
        (None) are taken for as long as `max_length`, and trained in half."""
        n_tokens, n_labelled = config.max_length, config.max_length // 2
        if prepared is not None and prepared.input_ids:
            n_tokens = max(map(len, prepared.input_ids))
            n_labelled = max(int((labels_T != IGNORED).sum()) for labels_T in prepared.labels)
        n_bytes = 2 if dtype == "bfloat16" or config.four_bit else 4
        on_gpu = device.startswith("cuda")
        return cls(
            config.batch_size, n_tokens, n_labelled, n_bytes, on_gpu, bool(config.gradient_checkpointing)
        )  # fmt: skip

    @property
    def n_cells(self) -> int:
        """Positions of the padded micro-batch, B T."""
        return self.n_rows * self.n_tokens


@dataclass(frozen=True)
class Estimate:
    """Bytes by part (see above). `defences`: what of it each defence takes, in activations or at its own moment."""

    weights: int
    adapter: int
    gradients: int
    optimiser: int
    activations: int
    working: int
    defences: Mapping[str, int]

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.adapter + self.gradients + self.optimiser + self.activations + self.working

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in bytes."""
        return {**vars(self), "defences": dict(self.defences), "total": self.total}


def estimate(shape: DecoderShape, config: TrainConfig, work: Work) -> Estimate:
    """The peak of a training step of these settings, by part."""
    names = {defence.name for defence in config.defences}
    gating, needs_copy = "gating" in names, config.full and bool(names & {"kl", "ldifs", "treft"})
    n_adapter = 0 if config.full else adapter_numbers(shape, config)
    trained = shape.n_parameters * work.weight_bytes if config.full else WIDE * n_adapter
    trained = 0 if gating else trained
    block = work.n_cells * block_token_bytes(shape, config, work) + mask_bytes(shape, work)
    activations = shape.n_blocks * (work.n_cells * work.weight_bytes * shape.width if work.checkpointing else block)
    # The last hidden states before and after the final norm, and their labelled positions.
    activations += work.n_cells * shape.width * (WIDE + work.weight_bytes) + _hidden(shape, work)
    defences: dict[str, int] = {item.name: defence_bytes(shape, item, work) for item in config.defences}
    kept = sum(n_bytes for name, n_bytes in defences.items() if name in _KEPT)
    moments = (
        head_bytes(shape, config, work),
        backward_bytes(shape, work) + (block if work.checkpointing else 0),
        sum(defences.values()) - kept + kl_bytes(shape, config, work),
    )
    gates = gate_numbers(shape, config) * WIDE if gating else 0
    return Estimate(
        weights=weight_bytes(shape, config, work) * (2 if needs_copy else 1),
        adapter=WIDE * n_adapter + gates,
        gradients=trained + gates,
        optimiser=2 * (trained + gates),
        activations=activations + kept,
        working=max(moments),
        defences=defences,
    )


def weight_bytes(shape: DecoderShape, config: TrainConfig, work: Work) -> int:
    """The model's weights: w each; with NF4 0.53 in the blocks' linear layers."""
    packed = shape.n_linear if config.four_bit else 0
    return int(packed * NF4 + (shape.n_parameters - packed) * work.weight_bytes)


def adapter_numbers(shape: DecoderShape, config: TrainConfig) -> int:
    """Weights of the adapter: rank (n_in + n_out) for each adapted layer."""
    rank, adapted = _adapter(shape, config)
    return shape.n_blocks * sum(rank * (item.n_in + item.n_out) for item in adapted)


def gate_numbers(shape: DecoderShape, config: TrainConfig) -> int:
    """Weights of gating's gates: (D + 1) times the width of the heads' output, for each block."""
    n_layers = next(_n_layers(shape, item.layers) for item in config.defences if item.name == "gating")
    return n_layers * (shape.width + 1) * shape.n_query


def block_token_bytes(shape: DecoderShape, config: TrainConfig, work: Work) -> int:
    """What autograd keeps of one block for each token.

    Of bfloat16 weights: both norms' inputs in float32 (8 D); for each adapted layer its input in float32 and the rank's
    output (4 n_in + 4 r); rotated queries, keys, values and the heads' output (2 bytes each; keys and values repeated
    to the queries' heads under a mask) and their logsumexp; gate, activation and up (2 F each). Of float32 weights
    nothing is converted, so that layers with one input share it. With every weight trained each layer's input is kept
    in the weights' own dtype, and the norms' outputs.
    """
    w, width, inner = work.weight_bytes, shape.width, shape.n_inner
    narrow = w < WIDE
    rank, adapted = _adapter(shape, config)
    frozen = any(defence.name == "gating" for defence in config.defences)  # nothing of the adapter is trained
    total = 2 * WIDE * width  # the norms' inputs: the residual stream itself where it is float32
    total += 2 * WIDE if narrow else 0
    n_keys = shape.n_query if work.n_rows > 1 else shape.n_kv_heads * shape.head_width
    total += w * (2 * shape.n_query + 2 * n_keys) + WIDE * shape.n_heads
    total += w * inner * (3 if shape.gated_mlp else 1)
    if config.full:
        total += w * (2 * width + inner) + 2 * w * width
    elif not frozen:
        total += WIDE * rank * len(adapted)
        if narrow:
            total += WIDE * sum(item.n_in for item in adapted)
        else:
            # The heads' output is kept already.
            total += WIDE * sum({item.takes: item.n_in for item in adapted if item.takes != "heads"}.values())
    return total


def mask_bytes(shape: DecoderShape, work: Work) -> int:
    """One block's share of pairs of tokens: the mask in the weights' dtype, B T^2, where rows are padded; with
    attention written out the scores of all heads in float32 and once more in the weights' dtype."""
    pairs = work.n_rows * work.n_tokens**2
    if shape.written_attention:
        return pairs * shape.n_heads * (WIDE + work.weight_bytes)
    return pairs * work.weight_bytes if work.n_rows > 1 else 0


def head_bytes(shape: DecoderShape, config: TrainConfig, work: Work) -> int:
    """TRL's head in its backward pass: a tile of logits; on a CPU also the float32 steps of its softmax; the gradient
    of the hidden states and, with every weight trained, of the head."""
    positions = work.n_rows * work.n_labelled
    tile, words = min(positions, TILE_POSITIONS), min(shape.n_vocab, TILE_WORDS)
    total = tile * TILE_WORDS * work.weight_bytes + positions * shape.width * WIDE
    if not work.on_gpu:
        total += 6 * WIDE * tile * words
        total += WIDE * words * shape.width if work.weight_bytes < WIDE else 0
    if config.full:
        total += (WIDE + work.weight_bytes) * shape.n_vocab * shape.width
    return total


def backward_bytes(shape: DecoderShape, work: Work) -> int:
    """A block's widest layer in its backward pass: gradients of its output and input, in float32 and in the weights'
    dtype."""
    widest = max(max(item.n_in, item.n_out) for item in shape.linears)
    return work.n_cells * widest * (3 * WIDE + 2 * work.weight_bytes)


def kl_bytes(shape: DecoderShape, config: TrainConfig, work: Work) -> int:
    """KL's chunks: logits of both models, a gradient; on a GPU five more in float32, on a CPU a few rows of those."""
    if not any(defence.name == "kl" for defence in config.defences):
        return 0
    rows = min(work.n_cells, max(16, KL_CHUNK // (work.weight_bytes * shape.n_vocab)))
    total = 4 * rows * shape.n_vocab * work.weight_bytes + (5 * rows * shape.n_vocab * WIDE if work.on_gpu else 0)
    return total + (2 * shape.n_vocab * shape.width * work.weight_bytes if config.full else 0)


def defence_bytes(shape: DecoderShape, defence: "DefenceSettings", work: Work) -> int:
    """What a defence keeps until the backward pass, beside the adapter's own activations."""
    w, cells, width = work.weight_bytes, work.n_cells, shape.width
    if defence.name == "kl":  # last hidden states of the reference; those in scope of both, and a gradient
        return cells * width * 4 * w
    if defence.name == "ldifs":  # a layer's output of both models; in float32, and the difference of unit vectors
        return len(ldifs_layers(defence, shape.n_blocks)) * cells * width * (2 * w + 2 * WIDE)
    if defence.name == "steering":
        return _n_layers(shape, defence.layers, default=1) * cells * width * w
    if defence.name == "inoculation_adapter":  # its factors alone: frozen ones let autograd keep no input of theirs
        return w * sum(math.prod(shape) for shape in adapter_shapes(defence.adapter).values())
    if defence.name == "gating":  # its input in float32, the gate before and after doubling, the gated heads' output
        n_blocks = 1 if work.checkpointing else _n_layers(shape, defence.layers)
        return n_blocks * cells * WIDE * (width + 3 * shape.n_query)
    # treft: keys and values of all tokens, of the reference up to the last one in scope; their difference in scope
    n_layers, n_kv = _n_layers(shape, defence.layers), shape.n_kv_heads * shape.head_width
    n_scope = work.n_tokens if defence.tokens in ("all", "query") else min(TEMPLATE_TOKENS, work.n_tokens)
    n_reference = n_scope if defence.tokens == "prefix" else work.n_tokens
    tokens = w * work.n_tokens + w * n_reference + WIDE * n_scope
    return n_layers * work.n_rows * 2 * n_kv * tokens


def _indexed(folder: Path) -> set[str]:
    """Names in the index of weight files: some folders hold the same weights once more in another form."""
    try:
        found = orjson.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
        return set(found)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return set()


def _adapter(shape: DecoderShape, config: TrainConfig) -> tuple[int, list[Linear]]:
    """Its rank, and the layers of a block that it adapts."""
    rank, targets = config.lora.r, config.lora.targets
    if config.start_adapter is not None:
        saved = lora_config(config.start_adapter)
        rank, wanted = int(saved.get("r", rank)), saved.get("target_modules")
        targets = tuple(wanted) if isinstance(wanted, list) else (ALL_LINEAR,)
    found = [item for item in shape.linears if item.name in targets or targets == (ALL_LINEAR,)]
    return rank, [] if config.full else found


def _hidden(shape: DecoderShape, work: Work) -> int:
    """Last hidden states at the labelled positions."""
    return work.n_rows * work.n_labelled * shape.width * work.weight_bytes


def _n_layers(shape: DecoderShape, layers: Sequence[int] | None, default: int | None = None) -> int:
    return len(layers) if layers is not None else (default or shape.n_blocks)
