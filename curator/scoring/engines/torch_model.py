"""Loading a model folder for scoring: device, dtype, attention kernel and adapters."""

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from curator.errors import BadInputError, MissingDependencyError
from curator.scoring.engines.native_memory import bound_kernels
from curator.scoring.identity import (
    adapter_sha256,
    adapter_shapes,
    check_adapter_dir,
    check_model_dir,
    highest_token,
)

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
        model = with_adapter(model, adapter_dir)
    return model.to(device).eval().requires_grad_(False)


def load_checked(model_dir: Path, attention: str, **options: Any) -> Any:
    """The model of a folder with every weight from its files; the one place where transformers loads one.

    Never runs code from the folder, never reaches the network. Raises BadInputError for a folder that is not whole:
    tensors that the architecture has and the files lack (transformers would draw them at random), shapes that differ,
    packed weights whose library is absent, and a tokenizer with more ids than the embedding has rows.
    """
    check_model_dir(model_dir)
    fixed = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(model_dir, **fixed)
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            attention = "eager"
        with _no_bar():
            model, info = _load(model_dir, attention, {**fixed, **options})
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise BadInputError(f"model folder {model_dir} cannot be loaded: {_reason(model_dir, error)}") from error
    if lacking := sorted(info["missing_keys"]):
        extra = _listed(sorted(info["unexpected_keys"]))
        raise BadInputError(
            f"model folder {model_dir} lacks {len(lacking)} tensors of its architecture: {_listed(lacking)}"
            + (f"; it has others that fit nothing: {extra}" if extra else ""),
            details=lacking,
        )
    _check_vocabulary(model, model_dir)
    return model


def _reason(model_dir: Path, error: Exception) -> str:
    """What was wrong, in one line; a folder that needs its own code is refused for that."""
    if "trust_remote_code" in str(error):
        return "its architecture is code in the folder, which is never run here; only those of transformers are loaded"
    packed = json.loads((model_dir / "config.json").read_bytes()).get("quantization_config")
    prefix = f"its weights are packed ({packed.get('quant_method')}); take the unpacked model: " if packed else ""
    return prefix + " ".join(str(error).split())[:500]


def _check_vocabulary(model: Any, model_dir: Path) -> None:
    highest, token = highest_token(model_dir)
    n_rows = int(model.get_input_embeddings().weight.shape[0])
    if highest >= n_rows:
        raise BadInputError(
            f"the tokenizer of {model_dir} has ids up to {highest} ({token!r}), the embedding has {n_rows} rows: it is "
            "another model's tokenizer, or a token was added without model.resize_token_embeddings"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def with_adapter(model: Any, adapter_dir: Path, name: str = "default", *, trainable: bool = False) -> Any:
    """The model with a LoRA adapter on it, as a PeftModel; a further adapter of a PeftModel is added to it.

    Without autocast the adapter runs in the model's own dtype (PEFT would widen it to float32), except where it is
    trained on. Raises BadInputError unless every tensor of the file has its place in the model and every adapted layer
    its tensors: PEFT leaves what does not fit at its start, where an adapter does nothing.
    """
    import peft

    check_adapter_dir(adapter_dir)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error below
            if isinstance(model, peft.PeftModel):
                model.load_adapter(adapter_dir, adapter_name=name, autocast_adapter_dtype=False)
                adapted = model
            else:
                adapted = peft.PeftModel.from_pretrained(
                    model, adapter_dir, adapter_name=name, is_trainable=trainable, autocast_adapter_dtype=trainable
                )
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BadInputError(f"adapter {adapter_dir} does not fit the model: {' '.join(str(error).split())}") from error
    if not adapted.peft_config[name].is_prompt_learning:
        expected = set(peft.get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False))
        _check_adapter(adapter_dir, expected)
    return adapted


def _check_adapter(adapter_dir: Path, expected: set[str]) -> None:
    given = set(adapter_shapes(adapter_dir))
    absent, foreign = sorted(expected - given), sorted(given - expected)
    if absent or foreign:
        parts = [f"the model has no place for {len(foreign)} of its tensors: {_listed(foreign)}"] if foreign else []
        parts += [f"it lacks {len(absent)} tensors of the adapted layers: {_listed(absent)}"] if absent else []
        raise BadInputError(
            f"adapter {adapter_dir} does not fit the model: {'; '.join(parts)}", details=[*foreign, *absent]
        )


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


def _load(model_dir: Path, attention: str, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers found missing, unexpected or mismatched."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    try:
        return load(model_dir, attn_implementation=attention, output_loading_info=True, **common)
    except ValueError as error:
        if attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        return load(model_dir, attn_implementation="eager", output_loading_info=True, **common)


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
        self._peft = with_adapter(self._model if self._peft is None else self._peft, path, name)
        self._peft.eval()
