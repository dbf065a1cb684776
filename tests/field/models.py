"""Model folders and adapters as people have them, each with one fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.models import tiny_adapter_folder

Tensors = dict[str, Any]


def changed_folder(
    base: Path, folder: Path, change: Callable[[Tensors], Tensors] | None = None, config: Tensors | None = None
) -> Path:
    """A copy of a model folder with other tensors, or with more in config.json."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    if change is not None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    if config is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def without(part: str) -> Callable[[Tensors], Tensors]:
    """Tensors but for those whose name holds `part`."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def short_embedding(tensors: Tensors) -> Tensors:
    """Embedding and head with 20 rows, as of another model."""
    return {
        name: tensor[:20].contiguous() if "embed" in name or "lm_head" in name else tensor
        for name, tensor in tensors.items()
    }


def foreign_prefix(tensors: Tensors) -> Tensors:
    """All names under a prefix that the architecture does not have."""
    return {f"transformer_x.{name}": tensor for name, tensor in tensors.items()}


def custom_code(base: Path, folder: Path, mark: Path) -> Path:
    """A folder whose code writes `mark` when it runs."""
    changed_folder(base, folder, config={"model_type": "new_llm", "auto_map": {"AutoConfig": "configuration_x.X"}})
    code = f"open({str(mark)!r}, 'w').write('x')\nfrom transformers import LlamaConfig as X\n"
    (folder / "configuration_x.py").write_text(code)
    return folder


def added_token(base: Path, folder: Path) -> Path:
    """A tokenizer with one more token than the embedding has rows."""
    changed_folder(base, folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    highest = max([*document["model"]["vocab"].values(), *(item["id"] for item in document["added_tokens"])])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    document["added_tokens"].append({"id": highest + 1, "content": "<doc_sep>", **flags})
    path.write_text(json.dumps(document, ensure_ascii=False))
    return folder


def changed_adapter(base: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A random adapter of `base` with other tensors."""
    from safetensors.torch import load_file, save_file

    file = tiny_adapter_folder(base, folder) / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder
