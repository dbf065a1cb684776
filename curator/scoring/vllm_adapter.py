"""What vLLM must be told of a LoRA adapter, and the adapters that it would not compute as PEFT does.

vLLM 0.32 wraps only the projections that `lora_target_modules` names, matches its packed ones (qkv_proj, gate_up_proj)
by the last part of a name alone, and drops the rest of an adapter without a word: with full names, as PEFT writes them
for `all-linear` on small models, losses were off by 0.1 nats per token. So the names are taken from the tensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from curator.errors import BadInputError
from curator.scoring.identity import adapter_shapes, check_adapter_dir

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Keys of adapter_config.json that change what an adapter computes, with the values that vLLM computes alike.
_PLAIN = {
    "bias": ("none",), "lora_bias": (False,), "use_dora": (False,), "use_qalora": (False,), "fan_in_fan_out": (False,),
    "modules_to_save": (None, []), "layer_replication": (None, []), "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, []),
}  # fmt: skip


@dataclass(frozen=True)
class AdapterShape:
    """`modules` are the last parts of the adapted projections' names; `max_rank` is one of `RANKS`."""

    modules: tuple[str, ...]
    max_rank: int


def vllm_adapter(adapter_dir: Path) -> AdapterShape:
    """How to load an adapter; BadInputError naming what vLLM does not compute as PEFT does."""
    check_adapter_dir(adapter_dir)
    config = json.loads((adapter_dir / "adapter_config.json").read_bytes())
    shapes = adapter_shapes(adapter_dir)
    found = [f"{key} {config[key]!r}" for key, plain in _PLAIN.items() if config.get(key, plain[0]) not in plain]
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type {config.get('peft_type')}")
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"] != "gaussian":
        found.append(f"init_lora_weights {config['init_lora_weights']!r}")
    found += [name for name in sorted(shapes) if not name.endswith((_A, _B)) or "lm_head" in name or "embed" in name][
        :3
    ]
    ranks = [shape[0] for name, shape in shapes.items() if name.endswith(_A)]
    if ranks and max(ranks) > RANKS[-1]:
        found.append(f"rank {max(ranks)} above {RANKS[-1]}")
    if found or not ranks:
        raise BadInputError(
            f"vLLM does not compute adapter {adapter_dir} as PEFT does: {'; '.join(found) or 'no LoRA tensor'}. "
            "Give --merge-adapter, or score with --engine torch",
            details=found,
        )
    modules = {name.removesuffix(_A).rpartition(".")[2] for name in shapes if name.endswith(_A)}
    return AdapterShape(tuple(sorted(modules)), next(rank for rank in RANKS if rank >= max(ranks)))
