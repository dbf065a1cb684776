"""Where a model lies: a folder, or a model of the Hugging Face hub by its id, `ORG/NAME` or `ORG/NAME@REVISION`.

A hub id goes through huggingface_hub and its cache, and becomes the folder of one commit there; `HF_HUB_OFFLINE=1` is
honoured. Only weights in safetensors form, JSON, tokenizer and template files are fetched: nothing that could run.
"""

import argparse
import re
from pathlib import Path

from curator.errors import BadInputError, BallastError

MODEL_FORMS = "a folder or ORG/NAME[@REVISION]"  # what every option that names a model or an adapter takes
_HUB = re.compile(r"(?P<scheme>hf://)?(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "LICENSE*")


def locate_model(source: str | Path) -> Path:
    """The folder of a model or adapter; a Path, or text that names a folder here, is that folder.

    Text of the form ORG/NAME[@REVISION] whose first part is no folder here is a hub id. Raises BadInputError when the
    hub or its cache does not have the model; whether a folder holds a whole model is for its reader to check.
    """
    found = _HUB.fullmatch(source) if isinstance(source, str) else None
    if found is None:
        return Path(source)
    if not found["scheme"]:
        path = Path(source)
        if path.exists() or path.parent.is_dir():
            return path
    return _from_hub(found["id"], found["revision"])


def model_option(text: str) -> Path:
    """`locate_model` as the type of a command-line option."""
    try:
        return locate_model(text)
    except BallastError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def model_name(folder: Path) -> str:
    """A model's name for people: the hub's, or its folder's."""
    spec = hub_spec(folder)
    return folder.resolve().name if spec is None else spec.partition("@")[0].partition("/")[2]


def hub_spec(folder: Path) -> str | None:
    """`ORG/NAME@COMMIT` of a folder in the hub's cache; None for any other."""
    commit, snapshots, repository = folder.name, folder.parent.name, folder.parent.parent.name
    if snapshots != "snapshots" or not repository.startswith("models--"):
        return None
    return f"{repository.removeprefix('models--').replace('--', '/', 1)}@{commit}"


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    offline = constants.HF_HUB_OFFLINE
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(_FILES), local_files_only=offline)
    except Exception as error:  # of several libraries: no network, no such repository, an agreement not signed
        shown = f"{name}@{revision}" if revision else name
        if offline:
            fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
            raise BadInputError(
                f"model {shown} is neither a folder here nor in the Hugging Face cache, and HF_HUB_OFFLINE is set: "
                f"run `{fetch}` on a machine with network, or name a folder"
            ) from error
        first = " ".join(str(error).split())[:300]
        raise BadInputError(
            f"model {shown} is not a folder here and cannot be fetched from the Hugging Face hub: {first}"
        ) from error
    return Path(folder)
