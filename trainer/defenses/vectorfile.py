"""A file of persona vectors by its header alone: which tensor, its shape, what it was made of. Torch is not needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.errors import BadInputError, MissingError


@dataclass(frozen=True)
class VectorHeader:
    """The chosen tensor's name and shape, and the file's metadata: lists and objects decoded, all else as text
    (empty for a file made elsewhere)."""

    file: str
    name: str
    shape: tuple[int, ...]
    metadata: dict[str, Any]

    def check_shape(self, wanted: tuple[int, int]) -> None:
        """Raise BadInputError unless there is one row for the embeddings and each layer, (layers + 1, D)."""
        if self.shape != wanted:
            raise BadInputError(
                f"steering: {self.name} in {self.file} has shape {self.shape}; this model needs {wanted} (its layers + "
                "1, width): the vectors are another model's"
            )

    def check_weights(self, weights_sha256: str) -> bool:
        """Raise BadInputError when the file names other weights; False when it names none."""
        made_for = self.metadata.get("weights_sha256")
        if made_for is not None and made_for != weights_sha256:
            raise BadInputError(
                f"{self.file} was made for the model with weights {str(made_for)[:12]}, this one has "
                f"{weights_sha256[:12]}: extract it again for this model"
            )
        return made_for is not None


def read_header(path: Path, name: str | None) -> VectorHeader:
    """Raises MissingError, or BadInputError for another kind of file, several tensors and no choice, or a choice that
    is not there."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"steering: there is no file {path}: make it with `python -m trainer.persona extract`")
    try:
        with safe_open(path, framework="np") as file:
            names, metadata = sorted(file.keys()), file.metadata() or {}
            if name is None and len(names) != 1:
                raise BadInputError(f"steering: {path.name} holds {', '.join(names)}: choose one by name")
            chosen = names[0] if name is None else name
            if chosen not in names:
                raise BadInputError(f"steering: {path.name} has no {chosen}; it holds {', '.join(names)}")
            shape = tuple(file.get_slice(chosen).get_shape())
    except (SafetensorError, OSError) as error:
        raise BadInputError(
            f"steering: {path} is no safetensors file that can be read: {error}; make it with `python -m "
            "trainer.persona extract`"
        ) from error
    return VectorHeader(path.name, chosen, shape, {key: _decoded(text) for key, text in metadata.items()})


def _decoded(text: str) -> Any:
    """What `trainer.persona.vectors.save_vector` put there; other people's text may only look like JSON."""
    try:
        return orjson.loads(text) if text[:1] in ("[", "{") else text
    except orjson.JSONDecodeError:
        return text
