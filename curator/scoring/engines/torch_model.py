"""Loading a model folder for scoring: device, dtype, attention kernel and adapters."""

import time
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from curator.errors import BadInputError
from curator.scoring.engines.native_memory import bound_kernels
from curator.scoring.engines.torch_folder import (
    SAFE_LOADING,
    check_adapter,
    check_finite,
    check_model,
    ignoring_newer_settings,
    loading,
    quiet,
    read_config,
)
from curator.scoring.engines.torch_folder import torch as torch
from curator.scoring.engines.torch_folder import transformers as transformers
from curator.scoring.identity import adapter_sha256, read_object

DeviceName = str  # "auto", "cpu", "cuda", "cuda:1"


def engine_version() -> str:
    """Versions whose numerics a loss depends on, our own first; local build tags such as +cpu do not count."""
    names = ("torch", "transformers", "peft")
    return ", ".join(["2", *(f"{name} {version(name).partition('+')[0]}" for name in names)])


def set_threads(n: int | None) -> int:
    """Use `n` CPU threads in this process, and return how many; None measures.

    On cores that other processes use, threads wait for one another: two under load were four times slower than
    one. So None times a small product (0.2 s) both ways and keeps torch's own choice only where it gains.
    """
    bound_kernels()
    many = torch.get_num_threads()
    if n is None and many > 1:
        seconds: dict[int, list[float]] = {1: [], many: []}
        left, right = torch.ones(256, 1024), torch.ones(1024, 1024)
        for _ in range(5):
            for count, found in seconds.items():
                torch.set_num_threads(count)
                started = time.perf_counter()
                for _ in range(2):
                    left @ right
                found.append(time.perf_counter() - started)
        n = many if 1.2 * median(seconds[many]) < median(seconds[1]) else 1
    torch.set_num_threads(n or many)
    return n or many


def resolve_device(name: DeviceName) -> str:
    """`auto` is CUDA where there is any, else the CPU; BadInputError for a device this machine lacks."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise BadInputError(f"device {name!r} is unknown: use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise BadInputError(f"device {name!r} requested, this machine has {torch.cuda.device_count()} CUDA devices")
    return name


def resolve_dtype(name: str, device: str) -> str:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32.

    Capability flags decide and not a timing: the dtype is part of a scorer's identity and must be the same in
    every run on one machine. float16 is never chosen: it overflows, and on CPUs it is slower than float32.
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise BadInputError(f"dtype {name!r} is unknown: use auto, float32 or bfloat16")
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    flags = torch.cpu.get_capabilities()
    return "bfloat16" if any("bf16" in key and value is True for key, value in flags.items()) else "float32"


def load_model(model_dir: Path, device: str, dtype: str) -> Any:
    """The causal language model of a folder, in inference state on `device`.

    SDPA attention wherever it is exact; a model that caps its attention scores (Gemma 2) or has no SDPA runs in
    transformers' eager attention. Raises as `load_checked`.
    """
    return load_checked(model_dir, "sdpa", dtype=getattr(torch, dtype)).to(device).eval().requires_grad_(False)


def load_plain(model_dir: Path, adapter_dir: Path | None, device: str, dtype: str) -> Any:
    """The model as transformers and PEFT load it, attention written out (eager): the reference of a check."""
    model = load_checked(model_dir, "eager", dtype=getattr(torch, dtype))
    if adapter_dir is not None:
        model = with_adapter(model, adapter_dir, switchable=False)
    return model.to(device).eval().requires_grad_(False)


def load_checked(model_dir: Path, attention: str, **options: Any) -> Any:
    """The model of a folder with every weight from its files; the one place where transformers loads one.

    Never runs code from the folder, never reaches the network. Raises BadInputError as `torch_folder.check_model`, for
    packed weights, for values that are not finite, and for a generation_config.json that is no JSON object:
    transformers would leave its settings out without a word.
    """
    if (model_dir / "generation_config.json").is_file():
        read_object(model_dir / "generation_config.json")
    skeleton = check_model(model_dir)
    if getattr(skeleton.config.get_text_config(), "attn_logit_softcapping", None):
        attention = "eager"
    with loading(f"model folder {model_dir}"), quiet():
        model = _load(model_dir, attention, {**SAFE_LOADING, **options})
    check_finite(dict(model.named_parameters()), f"model folder {model_dir}")
    return model


def make_savable(model: Any) -> None:
    """Bring a model's generation settings into a form that transformers saves, before work is done that would be lost.

    One that only lacks `do_sample: true` beside its temperature or top_p gets it, which is what such values mean.
    Raises BadInputError for what does not validate even so.
    """
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
        try:
            generation.validate(strict=True)
        except ValueError as error:
            text = " ".join(str(error).split())
            raise BadInputError(f"generation_config.json cannot be saved again: {text}") from error


def with_adapter(
    model: Any, adapter_dir: Path, name: str = "default", *, trainable: bool = False, switchable: bool = True
) -> Any:
    """The model with a LoRA adapter on it, as a PeftModel; a further adapter of a PeftModel is added to it.

    Without autocast the adapter runs in the model's own dtype (PEFT would widen it to float32), except where it is
    trained on. Raises BadInputError as `torch_folder.check_adapter`, with the model as it was.
    """
    import peft

    adapted = isinstance(model, peft.PeftModel)
    check_adapter(model.get_base_model() if adapted else model, adapter_dir, switchable=switchable)
    with loading(f"adapter {adapter_dir}"), ignoring_newer_settings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of an adapter that was refused
        if adapted:
            model.load_adapter(adapter_dir, adapter_name=name, autocast_adapter_dtype=False)
            return model
        return peft.PeftModel.from_pretrained(
            model, adapter_dir, adapter_name=name, is_trainable=trainable, autocast_adapter_dtype=trainable
        )


def _load(model_dir: Path, attention: str, options: dict[str, Any]) -> Any:
    load = transformers.AutoModelForCausalLM.from_pretrained
    try:
        return load(model_dir, config=read_config(model_dir, attention), **options)
    except ValueError as error:
        if attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        return load(model_dir, config=read_config(model_dir, "eager"), **options)


class Adapters:
    """LoRA adapters of one resident base model, unmerged and switched by name; the base is never copied."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: Any = None

    def use(self, path: Path | None) -> None:
        """Activate an adapter folder, loading it once, or none; BadInputError when it does not fit."""
        if path is None:
            if self._peft is not None:
                self._peft.base_model.disable_adapter_layers()
            return
        name = "a" + adapter_sha256(path)[:24]  # by content: two paths to one adapter are one
        if self._peft is None or name not in self._peft.peft_config:
            self._peft = with_adapter(self._model if self._peft is None else self._peft, path, name)
            self._peft.eval()
        self._peft.base_model.enable_adapter_layers()
        self._peft.set_adapter(name)
