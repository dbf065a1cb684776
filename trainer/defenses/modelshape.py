"""Whether defences fit a model, by its config.json and the vectors' header: before anything costly is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from trainer.defenses.rules import check_layers, ldifs_layers
from trainer.defenses.vectorfile import read_header

if TYPE_CHECKING:
    from trainer.defenses.settings import DefenceSettings

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
        try:
            document = orjson.loads((folder / "config.json").read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return cls(None, None)  # loading says what is wrong with the folder
        if not isinstance(document, dict):
            return cls(None, None)
        inner = document.get("text_config")
        text = inner if isinstance(inner, dict) else document
        return cls(_number(text, _BLOCKS), _number(text, _WIDTH))


def check_fit(defences: "Sequence[DefenceSettings]", model: Path) -> None:
    """Raise MissingError or BadInputError for layers that the model lacks, or vectors that are absent or of another
    shape."""
    shape = ModelShape.of(model)
    for defence in defences:
        if defence.name == "steering":
            header = read_header(defence.vectors, defence.vector)
            if shape.n_blocks is not None and shape.width is not None:
                header.check_shape((shape.n_blocks + 1, shape.width))
        if shape.n_blocks is None or defence.name == "kl":
            continue
        if defence.name == "ldifs":
            ldifs_layers(defence, shape.n_blocks)
        elif defence.layers is not None:
            check_layers(defence.layers, shape.n_blocks, defence.name)


def check_vectors(defences: "Sequence[DefenceSettings]", weights_sha256: str) -> list[str]:
    """Raise BadInputError for vectors made for other weights, which may well have this model's shape.

    Returns the names of files that do not say what they were made for.
    """
    return [
        defence.vectors.name
        for defence in defences
        if defence.name == "steering" and not read_header(defence.vectors, defence.vector).check_weights(weights_sha256)
    ]


def _number(document: dict[str, Any], names: Sequence[str]) -> int | None:
    found = [document[name] for name in names if isinstance(document.get(name), int)]
    return found[0] if found else None
