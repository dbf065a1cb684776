"""Whether defences fit a model, checked before anything costly: by its config.json, the vectors' header, the adapter's
marker.

A file of persona vectors is read by its header alone (which tensor, its shape, what it was made from), without torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from curator.errors import BadInputError, MissingError
from curator.scoring.identity import recorded_base
from trainer.config.rules import check_layers, ldifs_layers
from trainer.runs.report import Warned
from trainer.runs.weights import lora_config

if TYPE_CHECKING:
    from trainer.config.defences import DefenceSettings

# Names of one and the same number in the configurations of different families.
_BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")


@dataclass(frozen=True)
class ModelShape:
    """Decoder blocks and width of the residual stream; None where config.json does not say (the model will)."""

    n_blocks: int | None
    width: int | None

    @classmethod
    def of(cls, folder: Path) -> "ModelShape":
        """From a model folder's config.json; a file that cannot be read says nothing."""
        return cls.from_settings(text_settings(folder))

    @classmethod
    def from_settings(cls, text: dict[str, Any]) -> "ModelShape":
        """From what `text_settings` gives."""
        return cls(first_number(text, _BLOCKS), first_number(text, _WIDTH))


def check_fit(defences: "Sequence[DefenceSettings]", model: Path) -> None:
    """Raise MissingError or BadInputError for layers that the model lacks, vectors that are absent or of another
    shape, or a folder without a plain LoRA adapter."""
    shape = ModelShape.of(model)
    for defence in defences:
        if defence.name == "steering":
            header = read_header(defence.vectors, defence.vector)
            if shape.n_blocks is not None and shape.width is not None:
                header.check_shape((shape.n_blocks + 1, shape.width))
        if defence.name == "inoculation_adapter":
            lora_config(defence.adapter)
        if shape.n_blocks is None:
            continue
        if defence.name == "ldifs":
            ldifs_layers(defence, shape.n_blocks)
        elif (layers := getattr(defence, "layers", None)) is not None:  # not every defence has the setting
            check_layers(layers, shape.n_blocks, defence.name)


def check_made_for(defences: "Sequence[DefenceSettings]", weights_sha256: str) -> list[Warned]:
    """Raise BadInputError for vectors or an adapter made for other weights, which may well have this model's shape.

    Returns a warning for each that does not say what it was made for.
    """
    found = []
    for defence in defences:
        if defence.name == "steering":
            known = read_header(defence.vectors, defence.vector).check_weights(weights_sha256)
            place, what, code = defence.vectors, "its vectors fit", "vectors_of_unknown_model"
        elif defence.name == "inoculation_adapter":
            known = _check_adapter_weights(defence.adapter, weights_sha256)
            place, what, code = defence.adapter, "the adapter fits", "adapter_of_unknown_model"
        else:
            continue
        if not known:
            text = (
                f"{place.name} does not say which weights it was made for: {what} this model in shape, no more is known"
            )
            found.append(Warned(code, text))
    return found


def _check_adapter_weights(folder: Path, weights_sha256: str) -> bool:
    """Raise BadInputError when an adapter's marker names other weights; False when it names none."""
    made_for = recorded_base(folder)
    if made_for is not None and made_for != weights_sha256:
        raise BadInputError(
            f"inoculation_adapter: {folder} was trained on the model with weights {made_for[:12]}, this one has "
            f"{weights_sha256[:12]}: train one on this model, for example with `python -m trainer.organisms`"
        )
    return made_for is not None


def text_settings(folder: Path) -> dict[str, Any]:
    """A model folder's config.json, of a model of text and images the part for text; empty when it cannot be read."""
    try:
        document = orjson.loads((folder / "config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}  # loading says what is wrong with the folder
    if not isinstance(document, dict):
        return {}
    inner = document.get("text_config")
    return inner if isinstance(inner, dict) else document


def first_number(document: dict[str, Any], names: Sequence[str]) -> int | None:
    """The first whole number under one of the names; None when there is none."""
    found = [document[name] for name in names if isinstance(document.get(name), int)]
    return found[0] if found else None


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
            f"steering: {path} is not a safetensors file that can be read: {error}; make it with `python -m "
            "trainer.persona extract`"
        ) from error
    return VectorHeader(path.name, chosen, shape, {key: _decoded(text) for key, text in metadata.items()})


def _decoded(text: str) -> Any:
    """What `trainer.persona.vectors.save_vector` put there; other people's text may only look like JSON."""
    try:
        return orjson.loads(text) if text[:1] in ("[", "{") else text
    except orjson.JSONDecodeError:
        return text
