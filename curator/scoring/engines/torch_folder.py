"""What a model folder or an adapter lacks, found before any of its weights are loaded.

transformers draws missing tensors at random and PEFT leaves missing factors at zero, each with no more than a warning.
Here both load onto torch's `meta` device first, where nothing is allocated and names and shapes are all that counts:
their own rules for tied, renamed and sharded weights hold, and whatever does not fit is an error that names it.

Nothing in a folder is ever run: `trust_remote_code` is off in every call.
"""

import copy
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curator.errors import BadInputError, MissingDependencyError
from curator.render.model_folder import check_vocabulary
from curator.scoring.identity import (
    check_adapter_dir,
    check_base,
    check_model_dir,
    check_packed_tensors,
    has_weights,
)

try:
    import torch as torch
    import transformers as transformers
except ImportError as error:  # pragma: no cover - the core installs without torch
    raise MissingDependencyError(f"scoring needs torch: pip install 'ballast-mix[score]' ({error})") from error

N_NAMED = 3  # tensors that an error names
SAFE_LOADING = {"local_files_only": True, "trust_remote_code": False}
# Tensors that a causal language model does not compute with: buffers of older versions, heads for other uses, towers
# for images and sound, layers that predict further tokens.
_UNUSED = re.compile(
    r"(^|\.)(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)$|^(v_head|score|classifier)\."
    r"|(^|\.)(vision|visual|audio|image|mtp)"
)
# Adapters whose loading changes the base's own weights, so that switching the adapter off is not the base.
_MERGE = "Merge it into a model folder and use that"
_CHECKED = (
    "checked"  # PEFT's name for the adapter here: with its own "default", tensors saved under that name would fit
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading bar and report from between our lines: what they would say is raised here."""
    logging = transformers.utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def read_config(model_dir: Path, attention: str) -> Any:
    """A folder's config.json with the attention that we choose, in the parts for text, images and sound alike.

    config.json may name one of its own, such as a kernel of the hub, whose code transformers would fetch and run.
    """
    config = transformers.AutoConfig.from_pretrained(model_dir, **SAFE_LOADING)
    config._attn_implementation = attention
    return config


def check_model(model_dir: Path) -> Any:
    """The folder's model on the meta device, without weights; BadInputError unless its tensors are all there and fit.

    Checked are names, shapes and dtypes of the tensors and that the tokenizer's ids have embeddings.
    """
    check_model_dir(model_dir)
    check_packed_tensors(model_dir)
    with loading(f"model folder {model_dir}"), quiet():
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir,
            config=read_config(model_dir, "eager"),
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **SAFE_LOADING,
        )
    lacking = sorted(found["missing_keys"])
    foreign = sorted(name for name in found["unexpected_keys"] if not _UNUSED.search(name))
    if lacking or foreign:
        parts = [f"lacks {len(lacking)} tensors of its architecture: {listed(lacking)}"] if lacking else []
        has = "it has" if lacking else "has"
        parts += [f"{has} {len(foreign)} others that fit nothing: {listed(foreign)}"] if foreign else []
        text = f"model folder {model_dir} {'; '.join(parts)}{_hint(lacking)}"
        raise BadInputError(text, details=[*lacking, *foreign])
    wrong = [f"{name} is {list(has)} and not {list(wants)}" for name, has, wants in sorted(found["mismatched_keys"])]
    if wrong:
        raise BadInputError(
            f"model folder {model_dir} cannot be loaded: tensors of other shapes than its config.json says: "
            f"{listed(wrong)}",
            details=wrong,
        )
    check_vocabulary(model_dir, int(model.get_input_embeddings().weight.shape[0]))
    return model


def check_adapter(base: Any, adapter_dir: Path, *, switchable: bool = True) -> Any:
    """The adapter on its base as a PeftModel without weights (on the meta device); BadInputError unless every tensor
    has its place in the model, and every place its tensor, and unless it was trained on these weights where it says on
    which (`identity.check_base`).

    `base` is a transformers model on any device. `switchable` also refuses what cannot be switched off exactly: layers
    that are repeated, and weights of the base's own that the file holds with other values.
    """
    import peft
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    check_adapter_dir(adapter_dir)
    folder = base.config.name_or_path  # "" of a model that was not read from a folder
    if folder and has_weights(Path(folder)):
        check_base(adapter_dir, Path(folder))
    with loading(f"adapter {adapter_dir}"), ignoring_newer_settings():
        config = peft.PeftConfig.from_pretrained(adapter_dir)
    _check_kind(config, adapter_dir, switchable)
    _check_settings(config, adapter_dir)
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # how it began: that needs weights, and the factors are in the file
    with torch.device("meta"):
        skeleton = type(base)(copy.deepcopy(base.config))
    with loading(f"adapter {adapter_dir} does not fit the model", ""), warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(skeleton, config, adapter_name=_CHECKED, low_cpu_mem_usage=True)
        own = {name for name in wrapped.state_dict() if f".{_CHECKED}" not in name}
        tensors = load_peft_weights(str(adapter_dir), device="cpu")
        _check_floats(tensors, adapter_dir)
        result = set_peft_model_state_dict(wrapped, tensors, adapter_name=_CHECKED, low_cpu_mem_usage=True)
    foreign = sorted(name.replace(f".{_CHECKED}", "") for name in result.unexpected_keys)
    lacking = sorted(name.replace(f".{_CHECKED}", "") for name in result.missing_keys if f".{_CHECKED}" in name)
    if lacking or foreign:
        parts = [f"the model has no place for {len(foreign)} of its tensors: {listed(foreign)}"] if foreign else []
        parts += [f"it lacks {len(lacking)} tensors of the adapted layers: {listed(lacking)}"] if lacking else []
        raise BadInputError(
            f"adapter {adapter_dir} does not fit the model: {'; '.join(parts)}", details=[*foreign, *lacking]
        )
    check_finite(tensors, f"adapter {adapter_dir}")
    changed = _changed(base, {name: tensors[name] for name in sorted(own & tensors.keys())})
    if switchable and changed:
        raise BadInputError(
            f"adapter {adapter_dir} holds {len(changed)} weights of the base itself with other values: "
            f"{listed(changed)}. {_MERGE}",
            details=changed,
        )
    return wrapped


def check_acts(adapter_dir: Path) -> None:
    """Raise BadInputError for a LoRA adapter that changes nothing: never trained, or of scale 0. Its losses would be
    the base's, and every gap 0."""
    import peft
    from peft.utils import load_peft_weights

    with loading(f"adapter {adapter_dir}"), ignoring_newer_settings():
        config = peft.PeftConfig.from_pretrained(adapter_dir)
        tensors = load_peft_weights(str(adapter_dir), device="cpu")
    if any("lora_" not in name or name.endswith("bias") for name in tensors):
        return
    factors = {name: bool(tensor.any()) for name, tensor in tensors.items() if re.search(r"lora_(embedding_)?B", name)}
    if factors and not any(factors.values()):
        raise BadInputError(f"adapter {adapter_dir} changes nothing: all its lora_B are 0, as before any training")
    partners = {name: tensors.get(re.sub(r"(lora_(?:embedding_)?)B", r"\1A", name)) for name in factors}
    if factors and not any(
        acts and partners[name] is not None and partners[name].any() for name, acts in factors.items()
    ):
        raise BadInputError(f"adapter {adapter_dir} changes nothing: in each layer lora_A or lora_B is 0")
    if config.lora_alpha == 0 and not any(getattr(config, "alpha_pattern", {}).values()):
        raise BadInputError(f"adapter {adapter_dir} changes nothing: its lora_alpha is 0")


def check_finite(tensors: Mapping[str, Any], what: str) -> None:
    """Raise BadInputError for tensors that hold NaN or infinity: every loss would be NaN."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    # Both ends instead of `isfinite` of all: that would take a quarter of the weights' memory once more.
    broken = sorted(
        name
        for name, tensor in floats.items()
        if not tensor.is_meta and not all(end.isfinite() for end in torch.aminmax(tensor))
    )
    if broken:
        raise BadInputError(
            f"{what} holds values that are not finite (NaN or infinity): {listed(broken)}", details=broken
        )


def _changed(base: Any, tensors: Mapping[str, Any]) -> list[str]:
    """The tensors whose values are not those of the base's own weights; all of them where the base has no values."""
    own = {name.replace(".base_layer", "").replace(".original_module", ""): t for name, t in base.state_dict().items()}
    names = {name: name.removeprefix("base_model.model.").replace(".base_layer", "") for name in tensors}
    return [
        name
        for name, tensor in tensors.items()
        if (weight := own.get(names[name])) is None
        or weight.is_meta
        or not torch.equal(weight.cpu(), tensor.to(weight.dtype))
    ]


def load_tokenizer(model_dir: Path) -> Any:
    """transformers' tokenizer of a folder, whose own code is not run."""
    with loading(f"the tokenizer of {model_dir}"):
        return transformers.AutoTokenizer.from_pretrained(model_dir, **SAFE_LOADING)


@contextmanager
def loading(what: str, verb: str = "cannot be loaded") -> Iterator[None]:
    """Whatever a library raises inside, as one line of ours."""
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:  # of transformers, PEFT, safetensors, huggingface_hub and torch, each with its own kinds
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise BadInputError(
                f"{what} {verb}: it needs code of its own (auto_map), which is never run here; take a model that "
                "transformers knows"
            ) from error
        raise BadInputError(f"{what} {verb}".rstrip() + f": {type(error).__name__}: {text[:400]}") from error


def _check_kind(config: Any, adapter_dir: Path, switchable: bool) -> None:
    if config.is_prompt_learning:
        raise BadInputError(
            f"adapter {adapter_dir} is not a LoRA adapter but {config.peft_type}, which is not supported"
        )
    if getattr(config, "megatron_config", None):
        raise BadInputError(f"adapter {adapter_dir} names a Python module to import (megatron_core): it is never run")
    if getattr(config, "alora_invocation_tokens", None):
        raise BadInputError(
            f"adapter {adapter_dir} acts only after tokens that invoke it (alora_invocation_tokens): the losses of "
            "whole conversations would be those of the base. Such adapters are not supported"
        )
    if not switchable:
        return
    if getattr(config, "layer_replication", None):
        raise BadInputError(f"adapter {adapter_dir} repeats layers of the base (layer_replication). {_MERGE}")
    begun = str(getattr(config, "init_lora_weights", None))
    if getattr(config, "bias", "none") != "none" or begun.startswith(_CHANGES_BASE):
        raise BadInputError(
            f"adapter {adapter_dir} is not a plain LoRA (type {config.peft_type}, bias "
            f"{getattr(config, 'bias', None)}, init_lora_weights {begun}): it changes the base's own weights. {_MERGE}"
        )


@contextmanager
def ignoring_newer_settings() -> Iterator[None]:
    """Without PEFT's warning about settings that it does not know: `check_adapter` refuses those that are on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unexpected keyword arguments")
        yield


def _check_settings(config: Any, adapter_dir: Path) -> None:
    """Raise BadInputError for settings that this PEFT leaves out: the adapter would compute something else."""
    given = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(config)}
    unknown = sorted(name for name, value in given.items() if name not in known and value)
    if unknown:
        raise BadInputError(
            f"adapter {adapter_dir} has settings that this version of PEFT does not know: {listed(unknown)}. Install "
            "the version that wrote it, or remove from adapter_config.json what changes nothing",
            details=unknown,
        )


def _check_floats(tensors: Mapping[str, Any], adapter_dir: Path) -> None:
    packed = sorted(name for name, t in tensors.items() if not t.is_floating_point() or t.element_size() == 1)
    if packed:
        name = packed[0]
        raise BadInputError(
            f"adapter {adapter_dir} cannot be loaded: its weights are packed ({name} is {tensors[name].dtype}); take "
            "the unpacked adapter",
            details=packed,
        )


def listed(names: Sequence[str]) -> str:
    """The first names of a list, for an error."""
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")


def _hint(lacking: Sequence[str]) -> str:
    if not any("lm_head" in name or "embed_out" in name for name in lacking):
        return ""
    return " (where the head shares the embedding, config.json says so with tie_word_embeddings)"
