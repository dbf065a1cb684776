"""Who scored: a hash of everything that moves a loss, and of no path, name or shard layout.

Inside one gap only weights and adapter may differ (method.md, "The perplexity gap"): `measure_id` hashes the rest.
"""

import hashlib
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from curator.console import warn
from curator.errors import BadInputError

if TYPE_CHECKING:
    from curator.render import Renderer

Identity = dict[str, Any]

WEIGHT_FIELDS = ("weights_sha256", "adapter_sha256")
# Keys that say where a model came from or which version wrote it, but do not change what it computes.
_CONFIG_NOISE = frozenset({"_name_or_path", "_model_name_or_path", "transformers_version"})
_ADAPTER_NOISE = frozenset(
    {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "parent_library"}
)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_model.safetensors"
MARKER = "ballast.json"  # beside what our trainer leaves: the mix, the defences, the base's hash
_PACKING_FILES = ("quantize_config.json", "quant_config.json")  # of GPTQ and AWQ, before config.json held it
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_BUFFERS = frozenset({"bias", "masked_bias", "position_ids", "num_batches_tracked"})  # masks and counts
_WINDOW_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Measure:
    """How losses are measured, beside the weights: rendering, mask, window in tokens, and what computes."""

    renderer: "Renderer"
    mask_rule: str
    max_length: int
    dtype: str
    engine: str
    engine_version: str

    def identity(self, weights_sha256: str, adapter_sha256: str | None) -> Identity:
        """Everything that a loss depends on, by content."""
        return {
            "weights_sha256": weights_sha256,
            "adapter_sha256": adapter_sha256,
            "chat_template_sha256": self.renderer.template_sha256,
            "tokenizer_sha256": self.renderer.tokenizer_sha256,
            "renderer_id": self.renderer.renderer_id,  # also a template's special tokens, and our rendering rules
            "mask_rule": self.mask_rule,
            "max_length": self.max_length,
            "dtype": self.dtype,
            "engine": self.engine,
            "engine_version": self.engine_version,
        }


def model_identity(model_dir: Path, adapter_dir: Path | None, measure: Measure) -> Identity:
    """Everything that a loss under this model depends on, by content.

    Reads all weight bytes once (seconds per gigabyte). Raises BadInputError on a folder that is not a model.
    """
    check_model_dir(model_dir)
    return measure.identity(weights_sha256(model_dir), adapter_sha256(adapter_dir) if adapter_dir else None)


def declared_identity(weights: str, adapter: str | None, measure: Measure) -> Identity:
    """The same for weights that cannot be read here; `declared` lists the fields that rest on someone's word.

    `weights` and `adapter` are SHA-256 in hex, best those of `weights_sha256` and `adapter_sha256`.
    """
    for name, value in (("weights", weights), ("adapter", adapter)):
        if value is not None and (len(value) != 64 or set(value) - set("0123456789abcdef")):
            raise BadInputError(f"declared {name} hash {value!r} is not a SHA-256: give 64 lower-case hex digits")
    declared = ["weights_sha256", "adapter_sha256", "dtype", "engine_version"]
    return {**measure.identity(weights, adapter), "declared": declared}


def has_weights(model_dir: Path) -> bool:
    """Whether the folder holds a whole model, and not only its tokenizer and template."""
    weights = (model_dir / _SINGLE).is_file() or (model_dir / _INDEX).is_file()
    return weights and (model_dir / "config.json").is_file()


def scorer_id(identity: Mapping[str, Any]) -> str:
    """128-bit hash of an identity, 32 hex digits."""
    return _hash_json(identity)


def measure_id(identity: Mapping[str, Any]) -> str:
    """The same hash without weights and adapter: scorers of one gap must share it."""
    return _hash_json({key: value for key, value in identity.items() if key not in WEIGHT_FIELDS})


def check_model_dir(model_dir: Path) -> None:
    """Raise BadInputError naming everything that a Hugging Face model folder needs and this one lacks."""
    if not model_dir.is_dir():
        raise BadInputError(f"model folder {model_dir} does not exist")
    missing = [name for name in ("config.json", "tokenizer.json") if not (model_dir / name).is_file()]
    if not (model_dir / _SINGLE).is_file() and not (model_dir / _INDEX).is_file():
        missing.append(f"{_SINGLE} (or {_INDEX} with its shards)")
    if missing:
        raise BadInputError(
            f"model folder {model_dir} lacks {', '.join(missing)}: save it with "
            "`model.save_pretrained(folder)` and `tokenizer.save_pretrained(folder)`",
            details=missing,
        )
    if (model_dir / _SINGLE).is_file() and (model_dir / _INDEX).is_file():
        raise BadInputError(
            f"model folder {model_dir} holds weights twice, {_SINGLE} and the shards of {_INDEX}, of which libraries "
            "read one or the other: remove those that are left from an earlier save"
        )
    _check_config(model_dir, read_object(model_dir / "config.json"))


def _check_config(model_dir: Path, config: Mapping[str, Any]) -> None:
    """Refuse what would make transformers load something else than the folder's weights, or more."""
    packing = config.get("quantization_config") or config.get("compression_config")
    if not packing:
        packing = next((name for name in _PACKING_FILES if (model_dir / name).is_file()), None)
    if packing:
        method = packing.get("quant_method") if isinstance(packing, dict) else packing
        raise _packed(model_dir, str(method or "quantization_config"))
    if (model_dir / "adapter_config.json").is_file():
        raise BadInputError(
            f"model folder {model_dir} holds an adapter beside the model (adapter_config.json), which transformers "
            "would put on top: move it into a folder of its own and name it as the adapter"
        )
    if config.get("transformers_weights") not in (None, _SINGLE):
        raise BadInputError(
            f"{model_dir}/config.json names other weights (transformers_weights {config['transformers_weights']!r}): "
            f"save them as {_SINGLE}"
        )


def _packed(model_dir: Path, how: str) -> BadInputError:
    return BadInputError(
        f"model folder {model_dir} cannot be loaded: its weights are packed ({how}); take the unpacked model"
    )


def check_packed_tensors(model_dir: Path) -> None:
    """Raise BadInputError for weights of 8 bits and less, which need scales, though config.json does not say so."""
    for file in weight_files(model_dir):
        for name, entry in tensor_headers(file).items():
            if entry["dtype"] not in _FLOATS and name.rpartition(".")[2] not in _BUFFERS:
                raise _packed(model_dir, f"{name} is {entry['dtype']}")


def check_adapter_dir(adapter_dir: Path) -> None:
    """Raise BadInputError unless the folder holds a PEFT adapter in safetensors form."""
    missing = [name for name in ("adapter_config.json", _ADAPTER) if not (adapter_dir / name).is_file()]
    if missing:
        raise BadInputError(f"adapter folder {adapter_dir} lacks {', '.join(missing)}", details=missing)


def recorded_base(adapter_dir: Path) -> str | None:
    """Hash of the weights that an adapter was trained on, as our trainer leaves it beside the adapter; None without."""
    try:
        marker = orjson.loads((adapter_dir / MARKER).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    found = marker.get("base_weights_sha256") if isinstance(marker, dict) else None
    return found if isinstance(found, str) else None


def check_base(adapter_dir: Path, model_dir: Path) -> None:
    """Raise BadInputError for an adapter that was trained on other weights than the model folder's, or under another
    config.json (heads, rotary settings): its shapes may fit all the same.

    Only our own adapters record a hash. Of one that records a name alone, and a name that is not the folder's, a
    warning says that nothing more is known.
    """
    recorded = recorded_base(adapter_dir)
    if recorded is None:
        named = read_object(adapter_dir / "adapter_config.json").get("base_model_name_or_path")
        if isinstance(named, str) and named and _model_name(named) not in _names_of(model_dir):
            warn(
                f"adapter {adapter_dir} names {named} as its base and records no hash: it fits {model_dir} in shape, "
                "and whether it was trained on it is not known"
            )
        return
    digest = weights_sha256(model_dir)
    if digest != recorded:
        raise BadInputError(
            f"adapter {adapter_dir} was trained on the model with weights {recorded[:12]} ({MARKER}), {model_dir} has "
            f"{digest[:12]} (weights and config.json): take the model that it was trained on. Where this is that very "
            f"model, saved anew, remove base_weights_sha256 from the adapter's {MARKER}"
        )


def _model_name(name: str) -> str:
    """The last part of a hub id or path, of the hub's cache too (models--ORG--NAME/snapshots/REVISION)."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    cached = [part.rpartition("--")[2] for part in parts if part.startswith("models--")]
    return (cached or parts or [""])[-1].lower()


def _names_of(model_dir: Path) -> set[str]:
    """What a folder calls its model: by its own name, and by what its config.json says that it came from."""
    config = read_object(model_dir / "config.json")
    return {_model_name(str(name)) for name in (model_dir.absolute(), config.get("_name_or_path") or model_dir)}


def model_window(model_dir: Path) -> int | None:
    """The most tokens that the model has positions for, from config.json; None where it names no limit."""
    config = read_object(model_dir / "config.json")
    text = config.get("text_config") or {}
    found = [source[key] for source in (config, text) for key in _WINDOW_KEYS if source.get(key)]
    return min(int(value) for value in found) if found else None


def fitting_length(model_dir: Path, max_length: int) -> int:
    """The longest row in tokens, of at most `max_length`, that the model has positions for."""
    own = model_window(model_dir)
    return max_length if own is None else min(own, max_length)


def weights_sha256(model_dir: Path) -> str:
    """Hash of the tensors that `from_pretrained` would load, and of config.json without its noise.

    All bytes are read, by a process once for each state of the files.
    """
    files = [model_dir / "config.json", *weight_files(model_dir)]
    try:
        state = tuple((str(file.absolute()), (found := file.stat()).st_mtime_ns, found.st_size) for file in files)
    except OSError:  # the reading says what is missing
        return _weights_of(model_dir)
    return _kept_weights_of(model_dir, state)


@lru_cache(maxsize=4)
def _kept_weights_of(model_dir: Path, _state: tuple[tuple[str, int, int], ...]) -> str:
    return _weights_of(model_dir)


def _weights_of(model_dir: Path) -> str:
    return _hash_weights(weight_files(model_dir), _without(read_object(model_dir / "config.json"), _CONFIG_NOISE))


def weight_files(model_dir: Path) -> list[Path]:
    """The files that `from_pretrained` would read: one, or the shards of the index."""
    if (model_dir / _SINGLE).is_file():
        return [model_dir / _SINGLE]
    shards = read_object(model_dir / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise BadInputError(f"{model_dir / _INDEX} lists no shards (weight_map)")
    return [model_dir / name for name in sorted(set(shards.values()))]


def adapter_sha256(adapter_dir: Path) -> str:
    """Hash of an adapter's tensors and of its configuration without paths and versions."""
    check_adapter_dir(adapter_dir)
    config = _without(read_object(adapter_dir / "adapter_config.json"), _ADAPTER_NOISE)
    # PEFT keeps module names in a set, so two savings of one adapter list them in different orders.
    settled = {
        key: sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        for key, value in config.items()
    }
    return _hash_weights([adapter_dir / _ADAPTER], settled)


def adapter_shapes(adapter_dir: Path) -> dict[str, list[int]]:
    """Shape of each tensor of an adapter by name; BadInputError when the file is not whole."""
    return {name: list(entry["shape"]) for name, entry in tensor_headers(adapter_dir / _ADAPTER).items()}


def tensor_headers(file: Path) -> dict[str, dict[str, Any]]:
    """`dtype` and `shape` of each tensor of a safetensors file by name; BadInputError when its header is not whole."""
    try:
        with file.open("rb") as handle:
            header = orjson.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        found = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if not all(isinstance(entry["dtype"], str) and isinstance(entry["shape"], list) for entry in found.values()):
            raise ValueError("its header is not one of tensors")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise BadInputError(f"{file} is not a whole safetensors file: {error}") from error


def _hash_weights(files: Iterable[Path], config: Mapping[str, Any]) -> str:
    digests: dict[str, str] = {}
    for file in files:
        digests.update(_tensor_digests(file))
    whole = {"config": config, "tensors": digests}
    return hashlib.sha256(orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _tensor_digests(file: Path) -> dict[str, str]:
    """SHA-256 of each tensor's dtype, shape and bytes: shard boundaries and their metadata do not count.

    The format is eight bytes of header length, a JSON header with offsets, then the bytes.
    """
    try:
        with file.open("rb") as handle:
            n_header = int.from_bytes(handle.read(8), "little")
            header = orjson.loads(handle.read(n_header))
            header.pop("__metadata__", None)
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                start = 8 + n_header
                n_data = max((entry["data_offsets"][1] for entry in header.values()), default=0)
                if len(data) != start + n_data:
                    raise ValueError(f"{len(data)} bytes, its header says {start + n_data}")
                return {name: _tensor_digest(data, start, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise BadInputError(f"{file} is not a whole safetensors file: {error}") from error


def _tensor_digest(data: mmap.mmap, start: int, entry: Mapping[str, Any]) -> str:
    begin, end = entry["data_offsets"]
    digest = hashlib.sha256(orjson.dumps([entry["dtype"], entry["shape"]]))
    with memoryview(data) as view, view[start + begin : start + end] as tensor:
        digest.update(tensor)
    return digest.hexdigest()


def _hash_json(document: Mapping[str, Any]) -> str:
    text = orjson.dumps(dict(document), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _without(document: Mapping[str, Any], noise: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in noise}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; raises BadInputError without the file, and where it is something else."""
    try:
        document = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInputError(f"{path} does not exist") from error
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadInputError(f"{path} is not a JSON object")
    return document
