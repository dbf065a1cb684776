"""Floating-point operations that scoring a row needs, and the rate of the machine's own matrix product.

Needed are: each fed token through the decoder's linear layers (2 per weight), causal attention over the tokens
before it (half of the square), and the head at response positions alone. What an implementation computes beyond
that (padding, logits of prompts, the other half of attention) does not count (ours; as in PaLM's model FLOPs
utilisation, arXiv 2204.02311 appendix B, but for the head).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from curator.render import Rendered
from curator.scoring.engines.torch_model import torch

GEMM_SIZE = 2_048
_GEMM_TIMES = 5


@dataclass(frozen=True)
class Shape:
    """What FLOPs depend on: weights of the decoder's linear layers, layers, attention width, D and V."""

    n_linear: int
    n_layers: int
    attention_width: int
    hidden: int
    vocabulary: int

    @property
    def name(self) -> str:
        """In a few words."""
        return f"{self.n_layers} layers, hidden {self.hidden}, vocabulary {self.vocabulary:,}"


def model_shape(model: Any) -> Shape:
    """The shape of a transformers causal language model."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    n_linear = sum(part.weight.numel() for part in linear)
    return Shape(n_linear, config.num_hidden_layers, width, config.hidden_size, config.vocab_size)


def needed_flops(shape: Shape, rows: Sequence[Rendered]) -> float:
    """Operations that the losses of these rows need at least."""
    total = 0.0
    for row in rows:
        positions = np.flatnonzero(row.loss_mask)
        n_fed, n_scored = int(positions[-1]) + 1, len(positions)
        total += 2.0 * shape.n_linear * n_fed
        total += 2.0 * shape.n_layers * shape.attention_width * n_fed * (n_fed + 1)  # 4 T^2 D, the causal half
        total += 2.0 * shape.hidden * shape.vocabulary * n_scored
    return total


def gemm_flops_per_s(
    device: str, dtype: str, clock: Callable[[], float] = time.perf_counter, size: int = GEMM_SIZE
) -> float:
    """Rate of a square matrix product in that dtype: the median of a few, after one to warm up."""
    left = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    right = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    seconds = []
    with torch.inference_mode():
        for _ in range(_GEMM_TIMES + 1):
            _wait(device)
            started = clock()
            left @ right
            _wait(device)
            seconds.append(clock() - started)
    return 2.0 * size**3 / median(seconds[1:])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
