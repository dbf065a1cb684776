"""Which defences go together, and which settings cannot act: refused before anything is loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.defenses.settings import DefenceSettings


def check_combination(defences: "Sequence[DefenceSettings]", *, from_mix: bool) -> None:
    """Raise ValueError with the reason for settings that would do nothing or contradict each other.

    Every set of different defences is allowed. The reference forward has adapters, dropout, steering and gates off:
    with `steering`, the terms of the others compare the steered student with it, as docs/defences.md says.
    """
    names = [defence.name for defence in defences]
    if len(names) != len(set(names)):
        raise ValueError(f"each defence once, not {names}")
    for defence in defences:
        layers = getattr(defence, "layers", None)
        if layers is not None and not layers:
            raise ValueError(f"{defence.name}: an empty list of layers would do nothing; leave it out, or name some")
        if layers is not None and len(set(layers)) != len(layers):
            raise ValueError(f"{defence.name}: each layer once, not {list(layers)}")
        if defence.name == "kl" and defence.rows == "safe" and not from_mix:
            raise ValueError("kl: rows=safe needs a mix; in a plain file no row is safe, so the term would be 0")
