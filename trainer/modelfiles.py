"""A model folder's small files, looked at or copied without loading the model."""

import shutil
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import orjson

from curator.errors import BadInputError
from trainer.config import tracker_modules

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "vocab.json",
    "merges.txt", "tokenizer.model", "added_tokens.json",
)  # fmt: skip


def check_trackers(names: Sequence[str]) -> None:
    """Raise BadInputError for a tracker that is installed but cannot be imported, before a model is loaded."""
    for name in names:
        module = next((module for module in tracker_modules(name) if find_spec(module)), name)
        try:
            import_module("torch.utils.tensorboard" if module == "tensorboard" else module)
        except Exception as error:  # whatever a broken installation raises
            raise BadInputError(f"the tracker {name} cannot be loaded: {error}; install it anew") from error


def check_quantisation(model: Path) -> None:
    """Raise BadInputError for a folder of packed weights that nothing here can unpack."""
    try:
        document = orjson.loads((model / "config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return  # loading says what is wrong with the folder
    method = (document.get("quantization_config") or {}).get("quant_method")
    if method == "bitsandbytes" and find_spec("bitsandbytes") is None:
        raise BadInputError(
            f"the weights of {model} are packed by bitsandbytes, which is not installed: pip install bitsandbytes, or "
            "take the model in its unpacked form"
        )


def copy_tokenizer(model: Path, target: Path) -> None:
    """The tokenizer and chat template of one model folder into another."""
    for name in _TOKENIZER_FILES:
        if (model / name).exists():
            shutil.copyfile(model / name, target / name)
