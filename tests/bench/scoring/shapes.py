"""A Llama of random weights in a shape that no small model has, with another model's tokenizer and template."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from curator.errors import BadInputError

_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges*")
_HEAD_SIZE = 64
_LEAST_VOCABULARY = 256


@dataclass(frozen=True)
class LlamaShape:
    """Hidden width, layers and vocabulary; heads of 64, a quarter as many for keys and values, 4 x width inside."""

    hidden: int
    layers: int
    vocabulary: int

    @property
    def name(self) -> str:
        """As the option takes it."""
        return f"{self.hidden}x{self.layers}x{self.vocabulary}"


def parse_shape(text: str) -> LlamaShape:
    """`2048x16x128000`; raises BadInputError for anything else."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise BadInputError(f"shape {text!r}: give hidden width, layers and vocabulary as in 2048x16x128000")
    hidden, layers, vocabulary = map(int, parts)
    if hidden % (4 * _HEAD_SIZE) or hidden == 0 or layers < 1 or vocabulary < _LEAST_VOCABULARY:
        raise BadInputError(
            f"shape {text!r}: the width must be a multiple of {4 * _HEAD_SIZE}, with at least 1 layer and "
            f"{_LEAST_VOCABULARY} tokens"
        )
    return LlamaShape(hidden, layers, vocabulary)


def make_model(shape: LlamaShape, source: Path, folder: Path, seed: int = 0) -> Path:
    """Write the model (bfloat16, seeded) into `folder` with the tokenizer of `source`; returns the folder.

    Raises BadInputError when the tokenizer has more tokens than the shape's vocabulary.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    n_known = len(AutoTokenizer.from_pretrained(source))
    if n_known > shape.vocabulary:
        raise BadInputError(f"shape {shape.name}: the tokenizer of {source} has {n_known} tokens, more than that")
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copy(path, folder / path.name)
    n_heads = shape.hidden // _HEAD_SIZE
    config = LlamaConfig(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, vocab_size=shape.vocabulary,
        intermediate_size=4 * shape.hidden, num_attention_heads=n_heads, num_key_value_heads=n_heads // 4,
        head_dim=_HEAD_SIZE, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(default)
    model.save_pretrained(folder)
    return folder
