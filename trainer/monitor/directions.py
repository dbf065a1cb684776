"""Seven unit directions in the residual stream of one model at one layer (method.md, "Evaluation"), and their file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from curator.console import Progress
from curator.errors import BadInputError, MissingError
from curator.messages import Message
from curator.render import Renderer
from curator.store.filesystem import atomic_write
from trainer.persona.activations import (
    LAYER_CONVENTION,
    Floats,
    pooled_states,
    prompt_of,
)
from trainer.persona.traits import Trait, cases, merges_system

NEUTRAL = Path(__file__).parent / "neutral.txt"
_TENSOR = "directions"


@dataclass(frozen=True)
class Directions:
    """Unit vectors, (K, D), in the order of `traits`; row `layer` of the residual stream."""

    traits: tuple[str, ...]
    layer: int
    unit_KD: Floats
    weights_sha256: str
    renderer_id: str
    n_questions: int

    @property
    def directions_id(self) -> str:
        """128-bit hash of everything that drift depends on: drifts of different ids cannot be compared."""
        head = orjson.dumps([self.traits, self.layer, self.weights_sha256, self.renderer_id])
        digest = hashlib.blake2b(head, digest_size=16)
        digest.update(self.unit_KD.astype(np.float32).tobytes())
        return digest.hexdigest()


def neutral_prompts() -> list[list[Message]]:
    """The ninety shipped prompts, one user turn each."""
    lines = NEUTRAL.read_text(encoding="utf-8").splitlines()
    return [[{"role": "user", "content": line}] for line in lines if line]


def find_directions(
    model: Any, renderer: Renderer, traits: Sequence[Trait], layer: int, weights_sha256: str
) -> Directions:
    """For each trait the mean state at the last prompt token under its positive system prompts minus that under its
    negative ones, over all questions, scaled to length 1.

    Raises BadInputError when a trait makes no difference at that layer.
    """
    if len({len(trait.questions) for trait in traits}) != 1:
        raise BadInputError("every trait must be asked the same number of questions")
    merged, found = merges_system(renderer), []
    n_prompts = sum(len(cases(trait)) for trait in traits)
    with Progress(n_prompts, "prompts", "trait directions") as progress:
        for trait in traits:
            asked = cases(trait)
            items = [prompt_of(renderer, case.prompt(trait, merged=merged)) for case in asked]
            states_ND = pooled_states(model, items, [layer], on_items=progress.advance)[:, 0]
            positive_N = np.array([case.side == "positive" for case in asked])
            difference_D = states_ND[positive_N].mean(0) - states_ND[~positive_N].mean(0)
            norm = float(np.linalg.norm(difference_D))
            if norm == 0.0:
                raise BadInputError(f"{trait.trait}: its prompts make no difference at row {layer}: choose another")
            found.append(difference_D / norm)
    names = tuple(trait.trait for trait in traits)
    return Directions(names, layer, np.stack(found), weights_sha256, renderer.renderer_id, len(traits[0].questions))


def save_directions(path: Path, directions: Directions) -> None:
    """One tensor (K, D), float32, with what it was made of."""
    from safetensors.numpy import save_file

    metadata = {
        "format_version": "1", "traits": orjson.dumps(directions.traits).decode(), "layer": str(directions.layer),
        "weights_sha256": directions.weights_sha256, "renderer_id": directions.renderer_id,
        "n_questions": str(directions.n_questions), "layer_convention": LAYER_CONVENTION, "tokens": "last prompt token",
    }  # fmt: skip
    with atomic_write(path, durable=True) as temporary:
        save_file({_TENSOR: directions.unit_KD.astype(np.float32)}, temporary, metadata=metadata)


def load_directions(path: Path, weights_sha256: str | None = None, renderer_id: str | None = None) -> Directions:
    """Raises MissingError, or BadInputError for another kind of file or the directions of another model."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"there is no file {path}: make it with `python -m trainer.monitor directions`")
    try:
        with safe_open(path, framework="np") as file:
            metadata, unit_KD = file.metadata() or {}, file.get_tensor(_TENSOR).astype(np.float64)
        found = Directions(
            tuple(orjson.loads(metadata["traits"])), int(metadata["layer"]), unit_KD, metadata["weights_sha256"],
            metadata["renderer_id"], int(metadata["n_questions"]),
        )  # fmt: skip
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadInputError(f"{path} holds no trait directions: {error}") from error
    for name, have, want in (
        ("weights", found.weights_sha256, weights_sha256), ("renderer", found.renderer_id, renderer_id)
    ):  # fmt: skip
        if want is not None and have != want:
            raise BadInputError(
                f"{path.name} was made with {name} {have[:12]}, this model has {want[:12]}: make directions for it"
            )
    return found
