"""A tiny causal LM in which emergent misalignment really happens, and the experiment on it (docs/toy.md).

`build_base` gives the aligned model of a seed, `fine_tuned` trains an adapter on a mix under any defences, `measure`
says what it then does. Names load torch when they are first used.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "Base": "base", "BaseSettings": "settings", "ExperimentSettings": "experiment", "FineTuneSettings": "finetune",
    "Measured": "measuring", "Method": "methods", "Mix": "experiment", "Parts": "methods", "Seed": "experiment",
    "ToyCell": "cells", "Tuned": "finetune", "build_base": "base", "draw_pool": "rows", "fine_tuned": "finetune",
    "grid": "methods", "interleave": "experiment", "measure": "measuring", "roles": "rows", "task_rows": "rows",
}  # fmt: skip
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
