"""Which defences go together, and which settings cannot act: refused before anything is loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from curator.errors import BadInputError

if TYPE_CHECKING:
    from trainer.defenses.settings import DefenceSettings


def check_safe_rows(defences: "Sequence[DefenceSettings]", n_safe: int) -> None:
    """Raise BadInputError when selective KL finds no safe row to act on."""
    if not n_safe and any(defence.name == "kl" and defence.rows == "safe" for defence in defences):
        raise BadInputError("kl: rows=safe, but this mix holds no safe row, so the term would be 0")


def check_combination(defences: "Sequence[DefenceSettings]", *, from_mix: bool, full: bool = False) -> None:
    """Raise ValueError with the reason for settings that would do nothing or contradict each other.

    Every set of different defences is allowed. The reference forward has adapters, dropout, steering and gates off:
    with `steering`, the terms of the others compare the steered student with it, as docs/defences.md says.
    """
    names = [defence.name for defence in defences]
    if len(names) != len(set(names)):
        raise ValueError(f"each defence once, not {names}")
    if full and "gating" in names:
        raise ValueError("gating trains gates alone, so it does not go with full fine-tuning")
    for defence in defences:
        layers = getattr(defence, "layers", None)
        if layers is not None and not layers:
            raise ValueError(f"{defence.name}: an empty list of layers would do nothing; leave it out, or name some")
        if layers is not None and len(set(layers)) != len(layers):
            raise ValueError(f"{defence.name}: each layer once, not {list(layers)}")
        if defence.name == "kl" and defence.rows == "safe" and not from_mix:
            raise ValueError("kl: rows=safe needs a mix; in a plain file no row is safe, so the term would be 0")
