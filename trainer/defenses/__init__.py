"""Defences that act during training: each one module behind `base.Defence`, any set of them together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.defenses.settings import DefenceSettings, KlSettings

if TYPE_CHECKING:
    from trainer.defenses.base import Defence

__all__ = ["DefenceSettings", "KlSettings", "build_defences"]


def build_defences(settings: Sequence[DefenceSettings]) -> "list[Defence]":
    """The defences of a configuration, in its order; torch is imported here and not before."""
    from trainer.defenses.kl import Kl

    makers = {"kl": Kl}
    return [makers[item.name](item) for item in settings]
