"""A small model that vLLM can run on a CPU (its attention there wants heads of 64), adapters, and a vLLM server."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from curator.scoring.engines.vllm_engine import vllm_adapter
from tests.models import tiny_tokenizer_folder

WINDOW = 300  # tokens that the server takes


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


@contextmanager
def vllm_server(model: Path, name: str, adapters: Mapping[str, Path]) -> Iterator[str]:
    """vLLM's own HTTP server in float32 on a free port of loopback: a model by its name, and adapters by theirs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name,
        "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--no-enable-prefix-caching", "--max-model-len", str(WINDOW), "--max-num-batched-tokens", "512",
    ]  # fmt: skip
    shapes = [vllm_adapter(path) for path in adapters.values()]
    if shapes:
        rank, modules = max(shape.max_rank for shape in shapes), {name for shape in shapes for name in shape.modules}
        command += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-target-modules", *sorted(modules)]
        command += ["--lora-modules", *(f"{adapter}={path}" for adapter, path in adapters.items())]
    environment = {
        **os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    log = model.parent / f"server-{port}.log"
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(120)  # it ends its engine first, slowly where cores are shared


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 1_200.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")
