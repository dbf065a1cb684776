"""LoRA adapters merged into the weights: one matrix product less, one rounding more.

A merged pass costs what a base pass costs. In bfloat16 the sum of weight and adapter is rounded once more, so merged
losses are another measure than unmerged ones: a scorer's identity says so, and the difference is measured after each
run.
"""

from pathlib import Path
from typing import Any

from curator.errors import BadInputError
from curator.scoring.engines.torch_model import load_model, torch, with_adapter
from curator.scoring.identity import adapter_shapes, check_adapter_dir


def load_merged(model_dir: Path, adapter_dir: Path, dtype: str) -> Any:
    """The model on the CPU with the adapter merged in: summed in float32 layer by layer, then rounded to `dtype` once.

    BadInputError for an adapter that does not fit, or that touches the embedding or the head, which may share weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    check_adapter_dir(adapter_dir)
    shared = [name for name in adapter_shapes(adapter_dir) if "lm_head" in name or "embed" in name]
    if shared:
        raise BadInputError(f"adapter {adapter_dir} changes {shared[0]}: such an adapter is not merged")
    model = load_model(model_dir, "cpu", dtype)
    wrapped = with_adapter(model, adapter_dir)
    if wrapped.peft_config["default"].is_prompt_learning:
        raise BadInputError(f"adapter {adapter_dir} is no LoRA: there is nothing to merge")
    with torch.no_grad():
        for module in wrapped.modules():
            if isinstance(module, BaseTunerLayer):
                module.float()
                module.merge(safe_merge=True)
                module.to(getattr(torch, dtype))
    return wrapped.unload().eval().requires_grad_(False)


def write_merged(model_dir: Path, adapter_dir: Path, dtype: str, target: Path) -> Path:
    """A model folder with the merged weights in `dtype`, and the tokenizer of `model_dir`."""
    load_merged(model_dir, adapter_dir, dtype).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (model_dir / name).is_file():
            (target / name).write_bytes((model_dir / name).read_bytes())
    return target
