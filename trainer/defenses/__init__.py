"""Defences that act during training, any set of them together.

In: settings (`trainer.config.defences`) and a model. Out: hooks around the training loss, and terms added to it. Each
is one module behind `base.Defence`: `kl`, `ldifs`, `treft`, `steering`, `inoculation_adapter`, `gating`.
`hidden_states` reads them on the modules that `blocks` finds; `reference` is the pass without adapters. `safelora` (a
projection after training), `self_recognition` and `own_answers` (rows to train on) are commands.
"""

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

    The defence called `two_words` in settings is the class `TwoWords` of the module `trainer.defenses.two_words`.
    """
    return [getattr(import_module(f"{__name__}.{item.name}"), _class_name(item.name))(item) for item in settings]


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
