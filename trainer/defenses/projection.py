"""Safe LoRA's projection (method.md, "Regularisers"; arXiv 2405.16833), on the two factors of an adapter alone.

For a module with change dW = s B A, V = W_aligned - W_base and C = V V^T / ||V||_F: where cos(dW, C dW) < tau, dW
becomes C dW = s (C B) A. Only B changes and the rank stays; nothing larger than some rows of V is ever held, and the
cosine, which s does not change, comes from matrices of size rank x rank.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from curator.errors import BadInputError
from trainer.runs.weights import AdapterFile, LoraPair, WeightFiles

ROWS = 2048  # rows of V held at once

Rows = Callable[[slice], torch.Tensor]


@dataclass(frozen=True)
class Projected:
    """What became of one module: the cosine between dW and C dW, and `norm_ratio` = ||C dW|| / ||dW||.

    C is not an orthogonal projection (it is V V^T over ||V||_F and not over its square), so the ratio depends on how
    much alignment changed. Both are null (never 0) where undefined; `reason` is then "no_change" (dW = 0) or
    "same_weights" (V = 0), and the module stays as it is.
    """

    module: str
    cosine: float | None
    norm_ratio: float | None
    v_norm: float
    projected: bool
    reason: str | None = None


def project_adapter(
    adapter: AdapterFile, base: Path, aligned: Path, tau: float
) -> Iterator[tuple[Projected, str, torch.Tensor]]:
    """Every adapted module's outcome, with the key and the value of its factor B afterwards.

    Raises BadInputError when the three do not have the same modules in the same shapes.
    """
    with WeightFiles(base) as old, WeightFiles(aligned) as new:
        for pair in adapter.pairs():
            found, b_OR = project_pair(pair, old, new, tau, adapter.fan_in_fan_out)
            yield found, pair.b_key, b_OR


def project_pair(
    pair: LoraPair, base: WeightFiles, aligned: WeightFiles, tau: float, transposed: bool = False
) -> tuple[Projected, torch.Tensor]:
    """One module's outcome, and its factor B afterwards: as it was, or C B in its own dtype."""
    n_rows, v_rows = _difference(pair, base, aligned, transposed)
    cb_OR, v_norm = project_b(pair.b_OR.double(), v_rows, n_rows, transposed)
    found = cosine(pair.a_RI.double(), pair.b_OR.double(), cb_OR)
    if found is None or v_norm == 0.0:
        reason = "no_change" if found is None else "same_weights"
        return Projected(pair.module, None, None, v_norm, False, reason), pair.b_OR
    below = found[0] < tau
    return Projected(pair.module, *found, v_norm, below), cb_OR.to(pair.b_OR.dtype) if below else pair.b_OR


def project_b(b_OR: torch.Tensor, v_rows: Rows, n_rows: int, transposed: bool = False) -> tuple[torch.Tensor, float]:
    """C B, (out, rank), and ||V||_F; zeros where V = 0.

    `v_rows` gives rows of V, (out, in), or with `transposed` of its transpose; each is read at most twice.
    """
    parts = [slice(start, min(start + ROWS, n_rows)) for start in range(0, n_rows, ROWS)]
    squares, summed = 0.0, torch.zeros((), dtype=b_OR.dtype)
    for part in parts:
        v = v_rows(part)
        squares += float(v.square().sum())
        # Over rows of V: V^T B. Over rows of its transpose: V (V^T B) at once.
        summed = summed + (v.T @ (v @ b_OR) if transposed else v.T @ b_OR[part])
    norm = squares**0.5
    if norm == 0.0:
        return torch.zeros_like(b_OR), 0.0
    found_OR = summed if transposed else torch.cat([v_rows(part) @ summed for part in parts])
    return found_OR / norm, norm


def cosine(a_RI: torch.Tensor, b_OR: torch.Tensor, cb_OR: torch.Tensor) -> tuple[float, float] | None:
    """The cosine between B A and C B A, and the ratio of their norms; None where B A = 0.

    Where C B A = 0 the cosine is 0: the change is orthogonal to all that alignment changed.
    """
    gram_RR = a_RI @ a_RI.T

    def inner(left_OR: torch.Tensor, right_OR: torch.Tensor) -> float:
        return float(((left_OR.T @ right_OR) * gram_RR).sum())

    before, after = (max(inner(item, item), 0.0) ** 0.5 for item in (b_OR, cb_OR))
    if before == 0.0:
        return None
    return (inner(b_OR, cb_OR) / (before * after) if after else 0.0), after / before


def _difference(pair: LoraPair, base: WeightFiles, aligned: WeightFiles, transposed: bool) -> tuple[int, Rows]:
    """How many rows V has as it is stored, and a reader of them."""
    new, old = aligned.name_of(pair.module), base.name_of(pair.module)
    n_out, n_in = len(pair.b_OR), pair.a_RI.shape[1]
    wanted = (n_in, n_out) if transposed else (n_out, n_in)
    found = aligned.shape(new), base.shape(old)
    if found != (wanted, wanted):
        raise BadInputError(
            f"{pair.module}: the adapter needs a weight of shape {wanted}; the aligned model has {found[0]}, the base "
            f"{found[1]}: adapter, base and aligned model are not of one kind"
        )
    return wanted[0], lambda part: aligned.rows(new, part) - base.rows(old, part)
