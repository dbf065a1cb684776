"""Defences that act during training: each one module behind `base.Defence`, any set of them together."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from trainer.config.defences import DefenceSettings, KlSettings
from trainer.config.rules import check_combination

if TYPE_CHECKING:
    from trainer.defenses.base import Defence

__all__ = ["DefenceSettings", "KlSettings", "build_defences", "check_combination"]


def build_defences(settings: Sequence[DefenceSettings]) -> "list[Defence]":
    """The defences of a configuration, in its order; torch is imported here and not before.

    The defence called `kl` in settings is the class `Kl` of the module `trainer.defenses.kl`.
    """
    return [getattr(import_module(f"{__name__}.{item.name}"), item.name.capitalize())(item) for item in settings]
