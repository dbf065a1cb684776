"""Loading a model folder for scoring: device, dtype, attention kernel and adapters."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from curator.errors import BadInputError, MissingDependencyError
from curator.scoring.engines.native_memory import bound_kernels
from curator.scoring.identity import adapter_sha256, check_adapter_dir, check_model_dir

try:
    import torch as torch
    import transformers as transformers
except ImportError as error:  # pragma: no cover - the core installs without torch
    raise MissingDependencyError(f"scoring needs torch: pip install 'ballast[score]' ({error})") from error

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
        raise BadInputError(f"device {name!r} asked for, this machine has {torch.cuda.device_count()} CUDA devices")
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

    SDPA attention wherever it is exact; a model that caps its attention scores (Gemma 2) or has no SDPA runs
    in transformers' eager attention. Never runs code from the folder, never reaches the network.
    """
    check_model_dir(model_dir)
    common = {"dtype": getattr(torch, dtype), "local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(model_dir, local_files_only=True)
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        with _no_bar():
            model = _load(model_dir, "eager" if capped else "sdpa", common)
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"model folder {model_dir} cannot be loaded: {error}") from error
    return model.to(device).eval().requires_grad_(False)


def load_plain(model_dir: Path, adapter_dir: Path | None, device: str, dtype: str) -> Any:
    """The model as transformers and PEFT load it, attention written out (eager): the reference of a check."""
    check_model_dir(model_dir)
    with _no_bar():
        model = _load(
            model_dir, "eager", {"dtype": getattr(torch, dtype), "local_files_only": True, "trust_remote_code": False}
        )
        if adapter_dir is not None:
            import peft

            model = peft.PeftModel.from_pretrained(model, adapter_dir, autocast_adapter_dtype=False)
    return model.to(device).eval().requires_grad_(False)


@contextmanager
def _no_bar() -> Iterator[None]:
    """Keep transformers' own loading bar from between our lines."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(model_dir: Path, attention: str, common: dict[str, Any]) -> Any:
    load = transformers.AutoModelForCausalLM.from_pretrained
    try:
        return load(model_dir, attn_implementation=attention, **common)
    except ValueError as error:
        if attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        return load(model_dir, attn_implementation="eager", **common)


class Adapters:
    """LoRA adapters of one resident base model, unmerged and switched by name; the base is never copied."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: Any = None
        self._active: str | None = None

    def use(self, path: Path | None) -> None:
        """Activate an adapter folder, loading it once, or none; BadInputError when it does not fit."""
        if path is None:
            self._active = None
            if self._peft is not None:
                self._peft.base_model.disable_adapter_layers()
            return
        name = "a" + adapter_sha256(path)[:24]  # by content: two paths to one adapter are one
        if self._peft is None or name not in self._peft.peft_config:
            self._load(path, name)
        self._peft.base_model.enable_adapter_layers()
        self._peft.set_adapter(name)
        self._active = name

    def _load(self, path: Path, name: str) -> None:
        import peft

        check_adapter_dir(path)
        config = peft.PeftConfig.from_pretrained(path)
        if config.is_prompt_learning or getattr(config, "bias", "none") != "none":
            raise BadInputError(
                f"adapter {path} is not a plain LoRA (type {config.peft_type}, bias "
                f"{getattr(config, 'bias', None)}): merge it into a model folder and score that"
            )
        # Without autocast the adapter runs in the model's own dtype; PEFT would widen it to float32.
        try:
            if self._peft is None:
                self._peft = peft.PeftModel.from_pretrained(
                    self._model, path, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                self._peft.load_adapter(path, adapter_name=name, autocast_adapter_dtype=False)
        except (ValueError, RuntimeError, KeyError) as error:
            raise BadInputError(f"adapter {path} does not fit the model: {error}") from error
        self._peft.eval()
