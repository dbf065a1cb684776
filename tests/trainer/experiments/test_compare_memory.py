"""The plan for a GPU fits one of 80 GB, by the estimate of trainer.loop.memory."""

from typing import Any

import pytest

from trainer.config.options import parse_arguments
from trainer.experiments.compare.methods import methods_of
from trainer.experiments.compare.settings import Plan, TrainRecipe, read_plan
from trainer.experiments.compare.shared import recipe_flags
from trainer.loop.memory import DecoderShape, Work, estimate

BYTES_80_GB = 80e9 * 0.9  # what a GPU's context, the allocator's fragments and the driver leave
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2.5-7B": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "Llama-3.1-8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip


def gpu_plan() -> Plan:
    plan, _ = read_plan("gpu", ["steering_vectors=v.safetensors", "base_model=base", "self_recognition_rows=rows"])
    assert isinstance(plan, Plan)
    return plan


def needed_bytes(model: str, recipe: TrainRecipe, defences: list[str]) -> int:
    """The estimate of `trainer.sft` with a recipe's options, every row as long as the window."""
    words = [*map(str, recipe_flags(recipe)), *(word.format(vectors="v.safetensors") for word in defences)]
    config = parse_arguments(["--model", "m", "--data", "d", "--out", "o", *words]).config
    shape = DecoderShape.from_settings(MODELS[model])
    assert shape is not None
    return estimate(shape, config, Work.of(config, None, "bfloat16", "cuda")).total


@pytest.mark.parametrize("model", MODELS)
def test_every_method_of_the_gpu_plan_fits_80_gb(model: str) -> None:
    plan = gpu_plan()
    methods = methods_of(plan)
    assert len(methods) >= 16
    needed = {method.name: needed_bytes(model, plan.train, list(method.sft)) for method in methods}
    assert max(needed.values()) < BYTES_80_GB, needed
    assert needed_bytes(model, plan.misaligned_train, []) < BYTES_80_GB
    without = plan.train.model_copy(update={"gradient_checkpointing": False})
    assert needed_bytes(model, without, []) > BYTES_80_GB


def test_a_recipe_says_yes_no_or_nothing_of_checkpointing() -> None:
    assert recipe_flags(TrainRecipe(gradient_checkpointing=True))[-1] == "--gradient-checkpointing"
    assert recipe_flags(TrainRecipe(gradient_checkpointing=False))[-1] == "--no-gradient-checkpointing"
    assert "gradient_checkpointing" not in TrainRecipe().model_dump(mode="json"), "cells of before keep their names"
    assert not any("checkpointing" in str(word) for word in recipe_flags(TrainRecipe()))
