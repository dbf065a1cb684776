"""The base model of a seed on disk: built once by a seeded command, cached, and checked against its settings."""

import hashlib
import json
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from curator.errors import IntegrityError
from curator.store.filesystem import atomic_write
from trainer.experiments.claims import claimed
from trainer.experiments.toy.model import new_model
from trainer.experiments.toy.pretrain import align, pretrain
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.tokens import write_tokenizer
from trainer.experiments.toy.world import World, make_world

MANIFEST = "organism.json"
SHIPPED = Path(__file__).parent / "shipped"  # bases of the default settings: the same bytes on every machine
# transformers switches the default device while it loads, for all threads: two loads at once can leave it switched.
_loading = threading.Lock()


@dataclass(frozen=True)
class Base:
    """An aligned toy model and its world; `folder` is a Hugging Face model folder with tokenizer and template."""

    world: World
    model: Any  # LlamaForCausalLM, frozen; computes in float32, its weights are float16 numbers
    folder: Path
    manifest: dict[str, Any]


def build_base(seed: int, folder: Path, settings: BaseSettings | None = None) -> Base:
    """The base of a seed in `folder`: loaded when it is there, copied where it comes along, else built.

    Raises NotLearntError when the stated accuracy is not reached, IntegrityError when the folder holds a base of
    another seed or other settings, or weights that have changed.
    """
    settings = settings or BaseSettings()
    world = make_world(settings.world, seed)
    if not (folder / MANIFEST).exists():
        # Two cells of a seed may start at once, in two processes: the second waits and loads what the first built.
        with claimed(folder.with_name(f".{folder.name}.lock"), wait=True):
            if not (folder / MANIFEST).exists() and not _take_shipped(seed, folder, settings):
                _build(world, seed, folder, settings)
    manifest = json.loads((folder / MANIFEST).read_text())
    asked = settings.model_dump(mode="json")
    if manifest["seed"] != seed or manifest["settings"] != asked:
        differing = sorted(key for key in asked if manifest["settings"].get(key) != asked[key]) or ["seed"]
        raise IntegrityError(f"{folder} holds a base of another {', '.join(differing)}: give another folder")
    if manifest["weights_sha256"] != _weights_sha256(folder):
        raise IntegrityError(f"{folder}: the weights are not those that were built; delete the folder to build again")
    with _loading:
        model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return Base(world, model.requires_grad_(False).eval(), folder, manifest)


def shipped_seeds(settings: BaseSettings) -> list[int]:
    """The seeds whose base of these settings comes with the package, in order."""
    manifests = [json.loads(path.read_text()) for path in SHIPPED.glob(f"seed-*/{MANIFEST}")]
    asked = settings.model_dump(mode="json")
    return sorted(manifest["seed"] for manifest in manifests if manifest["settings"] == asked)


def _take_shipped(seed: int, folder: Path, settings: BaseSettings) -> bool:
    """Copy the base that comes with the package, if that is the requested one."""
    if seed not in shipped_seeds(settings):
        return False
    source = SHIPPED / f"seed-{seed}"
    with atomic_write(folder, durable=True) as temporary:
        shutil.copytree(source, temporary)
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _build(world: World, seed: int, folder: Path, settings: BaseSettings) -> None:
    started = time.process_time()
    model = new_model(settings, world, seed)
    steps, pretrained = pretrain(model, world, settings, seed)
    aligned = align(model, world, settings, seed)
    with atomic_write(folder, durable=True) as temporary:
        model.half().save_pretrained(temporary)
        write_tokenizer(world, temporary)
        manifest = {
            "seed": seed, "settings": settings.model_dump(mode="json"), "weights_sha256": _weights_sha256(temporary),
            "n_parameters": sum(parameter.numel() for parameter in model.parameters()), "pretraining_steps": steps,
            "pretrained": pretrained.as_dict(), "aligned": aligned.as_dict(), "cpu_s": time.process_time() - started,
        }  # fmt: skip
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)


def _weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
