"""Persona vectors on disk: one tensor (n_layers + 1, d_model) per trait, and what it was made of, as safetensors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from curator.errors import BadInputError
from curator.store.filesystem import atomic_write
from trainer.defenses.model_fit import read_header
from trainer.defenses.steering import DEPTH, read_vector
from trainer.persona.activations import LAYER_CONVENTION, Floats

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Vector:
    """Rows by layer, (L + 1, D), not normalised, with the file's metadata (empty for a file made elsewhere)."""

    trait: str
    rows_LD: Floats
    metadata: dict[str, Any]

    def unit(self, layer: int) -> Floats:
        """Row `layer` scaled to length 1, (D,); raises BadInputError when it is not there, or zero."""
        if not 0 <= layer < len(self.rows_LD):
            raise BadInputError(f"layer {layer}: the vector has rows 0 to {len(self.rows_LD) - 1}")
        norm = float(np.linalg.norm(self.rows_LD[layer]))
        if norm == 0.0:
            raise BadInputError(f"the vector is zero at layer {layer}: nothing can be projected on it")
        return np.asarray(self.rows_LD[layer] / norm)


def default_layer(n_blocks: int) -> int:
    """The row that steering uses by default: five sevenths of the depth."""
    return max(1, round(DEPTH * n_blocks))


def difference_of_means(positive_NLD: Floats, negative_NLD: Floats) -> Floats:
    """Mean over the kept positive answers minus mean over the negative ones, (L + 1, D): method.md, "Regularisers"."""
    return np.asarray(positive_NLD.mean(axis=0) - negative_NLD.mean(axis=0))


def save_vector(path: Path, vector: Vector) -> None:
    """One tensor named after the trait; `trainer.sft --steering` reads it as it is."""
    from safetensors.numpy import save_file

    norms = [round(float(norm), 6) for norm in np.linalg.norm(vector.rows_LD, axis=1)]
    document = {
        "format_version": FORMAT_VERSION, "trait": vector.trait, "layer_convention": LAYER_CONVENTION,
        "n_layers": len(vector.rows_LD) - 1, "width": vector.rows_LD.shape[1], "norms": norms, **vector.metadata,
    }  # fmt: skip
    metadata = {key: item if isinstance(item, str) else orjson.dumps(item).decode() for key, item in document.items()}
    with atomic_write(path, durable=True) as temporary:
        save_file({vector.trait: vector.rows_LD.astype(np.float32)}, temporary, metadata=metadata)


def load_vector(path: Path, name: str | None, n_blocks: int, width: int, weights_sha256: str | None = None) -> Vector:
    """A vector of a model of this shape, from our own file or another's.

    Raises BadInputError when the shape differs, or when the file names other weights than `weights_sha256`.
    """
    rows_LD = read_vector(path, name, (n_blocks + 1, width)).double().numpy()
    header = read_header(path, name)
    if weights_sha256 is not None:
        header.check_weights(weights_sha256)
    return Vector(name or str(header.metadata.get("trait", path.stem)), rows_LD, header.metadata)
