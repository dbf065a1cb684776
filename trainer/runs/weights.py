"""Files of a model folder or an adapter, read without loading the model: weights, factors, tokenizer, quantisation."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson
from safetensors import safe_open

from curator.errors import BadInputError
from curator.scoring.identity import check_adapter_dir
from trainer.config import tracker_modules

if TYPE_CHECKING:
    import torch

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "vocab.json",
    "merges.txt", "tokenizer.model", "added_tokens.json",
)  # fmt: skip
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_PEFT_PREFIX = "base_model.model."


def check_trackers(names: Sequence[str]) -> None:
    """Raise BadInputError for a tracker that is installed but cannot be imported, before a model is loaded."""
    for name in names:
        module = next((module for module in tracker_modules(name) if find_spec(module)), name)
        try:
            import_module("torch.utils.tensorboard" if module == "tensorboard" else module)
        except Exception as error:  # whatever a broken installation raises
            raise BadInputError(f"the tracker {name} cannot be loaded: {error}; install it anew") from error


def copy_tokenizer(model: Path, target: Path) -> None:
    """The tokenizer and chat template of one model folder into another."""
    for name in _TOKENIZER_FILES:
        if (model / name).exists():
            shutil.copyfile(model / name, target / name)


class WeightFiles:
    """The tensors of a model folder by name; a context, since its files stay open.

    `headers_only` reads names and shapes without loading torch.
    """

    def __init__(self, folder: Path, *, headers_only: bool = False) -> None:
        self.folder = folder
        self._framework = "numpy" if headers_only else "pt"
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Self:
        for path in sorted(self.folder.glob("*.safetensors")):
            file = self._stack.enter_context(safe_open(path, framework=self._framework))
            self._files |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def name_of(self, module: str) -> str:
        """The name under which a module's weight is stored: its own, or one that lacks or adds leading parts.

        Raises BadInputError when there is none, or more than one.
        """
        wanted = f"{module}.weight"
        if wanted in self._files:
            return wanted
        found = [name for name in self._files if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
        if len(found) != 1:
            raise BadInputError(
                f"{self.folder.name} has {'no' if not found else 'more than one'} weight for the adapted module "
                f"{module}{': ' + ', '.join(sorted(found)[:3]) if found else ''}: is the adapter another model's?"
            )
        return found[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from its header alone."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def names(self) -> list[str]:
        """All tensors' names, sorted."""
        return sorted(self._files)

    def rows(self, name: str, part: slice) -> "torch.Tensor":
        """Some rows of a matrix, as float64."""
        return self._files[name].get_slice(name)[part].double()


def lora_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration, read without torch; raises BadInputError unless it is a plain LoRA."""
    check_adapter_dir(folder)
    config: dict[str, Any] = orjson.loads((folder / ADAPTER_CONFIG).read_bytes())
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise BadInputError(f"{folder} holds a {kind} adapter: its change of a weight is not B A alone")
    return config


@dataclass(frozen=True)
class LoraPair:
    """One module's factors: dW = scale * B A, with `a_RI` (rank, in) and `b_OR` (out, rank)."""

    module: str
    a_RI: "torch.Tensor"
    b_OR: "torch.Tensor"
    b_key: str


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA adapter as it lies on disk. `fan_in_fan_out`: the base stores its matrices as (in, out), as GPT-2 does."""

    tensors: "dict[str, torch.Tensor]"
    config: dict[str, Any]

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether base weights are stored transposed."""
        return bool(self.config.get("fan_in_fan_out"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises BadInputError for a folder without an adapter, or for one that is more than low-rank factors."""
        config = lora_config(folder)
        from safetensors.torch import load_file

        return cls(load_file(folder / ADAPTER_WEIGHTS), config)

    def pairs(self) -> Iterator[LoraPair]:
        """The factors of every adapted linear layer, in the order of names."""
        for key in sorted(self.tensors):
            if not key.endswith(_A):
                continue
            stem = key.removesuffix(_A)
            a_RI, b_OR = self.tensors[key], self.tensors[stem + _B]
            if a_RI.dim() != 2 or b_OR.dim() != 2:
                raise BadInputError(f"{stem}: factors of shape {tuple(a_RI.shape)} do not belong to a linear layer")
            yield LoraPair(stem.removeprefix(_PEFT_PREFIX), a_RI, b_OR, stem + _B)

    def others(self) -> list[str]:
        """Tensors that belong to no pair (trained embeddings or whole modules)."""
        return sorted(key for key in self.tensors if not key.endswith((_A, _B)))
