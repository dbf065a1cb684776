"""A small model that vLLM can run on a CPU (its attention there wants heads of 64), and adapters of two shapes."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.models import tiny_tokenizer_folder


def vllm_model_folder(path: Path) -> Path:
    """A random Llama of width 128 with tied embeddings, and the tests' tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_tokenizer_folder(path)
    config = AutoConfig.for_model(
        "llama", vocab_size=Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab_size(), hidden_size=128,
        intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.mul_(3.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(path)
    return path


def vllm_adapter_folder(model_folder: Path, path: Path, **options: Any) -> Path:
    """A random LoRA with B != 0; `options` go to PEFT's LoraConfig."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    torch.manual_seed(len(path.name))
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(base, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.05)
    model.save_pretrained(path)
    return path
