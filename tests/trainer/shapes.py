"""Random Llamas of a given shape on disk, and rows of a given length to train them on."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from curator.render import POSTFIX, PREFIX, QUERY
from tests.models import tiny_tokenizer_folder
from trainer.data.rows import PreparedRows

LEAST_VOCABULARY = 800  # the tiny tokenizer has some 700 tokens


@dataclass(frozen=True)
class Shape:
    """A Llama: width, layers, inner width, heads of queries and of keys, vocabulary."""

    width: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def name(self) -> str:
        """In a few words."""
        return f"{self.width}x{self.layers}x{self.vocabulary}"


def shaped_model(folder: Path, shape: Shape, *, device: str = "cpu", dtype: str = "float32") -> Path:
    """A Llama of random weights (made on `device`, which is fast on a GPU) with the tests' tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_tokenizer_folder(folder)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        torch.manual_seed(0)
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    return folder


def shaped_rows(n_rows: int, n_tokens: int, n_labelled: int) -> PreparedRows:
    """Rows of random tokens, every second one three shorter so that batches are padded; the last `n_labelled` are
    trained, the first four are the prefix and the two before the answer the postfix."""
    rng, prepared = random.Random(0), PreparedRows()
    for index in range(n_rows):
        n = n_tokens - 3 * (index % 2)
        ids = np.array([rng.randrange(3, LEAST_VOCABULARY) for _ in range(n)], dtype=np.int32)
        labels, classes = ids.copy(), np.full(n, QUERY, dtype=np.int8)
        labels[: n - n_labelled] = -100
        classes[:4], classes[n - n_labelled - 2 : n - n_labelled], classes[n - n_labelled :] = PREFIX, POSTFIX, 0
        prepared.input_ids.append(ids)
        prepared.labels.append(labels)
        prepared.classes.append(classes)
        prepared.example_ids.append(f"{index:032x}")
        prepared.safe.append(False)
        prepared.counts.update(tokens=n, trained=n_labelled)
    prepared.longest = n_tokens
    return prepared
