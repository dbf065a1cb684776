"""Which defences go together, and which settings cannot act: refused before anything is loaded."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from curator.errors import BadInputError

if TYPE_CHECKING:
    from trainer.config.defences import DefenceSettings, LdifsSettings


def check_safe_rows(defences: "Sequence[DefenceSettings]", n_safe: int) -> None:
    """Raise BadInputError when selective KL finds no safe row to act on."""
    if not n_safe and any(defence.name == "kl" and defence.rows == "safe" for defence in defences):
        raise BadInputError("kl: rows=safe, but this mix holds no safe row, so the term would be 0")


def check_token_classes(defences: "Sequence[DefenceSettings]", n_by_class: Mapping[str, int], max_length: int) -> None:
    """Raise BadInputError when treft finds no token in its scope: its term would be 0 with a gradient of 0.

    `n_by_class`: tokens within the window over all rows, by `prefix`, `query` and `postfix`.
    """
    for defence in defences:
        if defence.name != "treft" or defence.tokens == "all" or n_by_class[defence.tokens]:
            continue
        there = [name for name, n in n_by_class.items() if n]
        raise BadInputError(
            f"treft: tokens={defence.tokens}, but with this chat template no row has such a token within {max_length} "
            f"tokens ({', '.join(f'{name} {n:,}' for name, n in n_by_class.items())}), so the term would be 0: "
            f"set tokens to {' or '.join([*there, 'all'])} (--defenses FILE)"
        )


def check_layers(layers: Sequence[int], n_blocks: int, name: str) -> None:
    """Raise BadInputError for an empty list, or for numbers that a model with this many decoder blocks lacks."""
    missing = [layer for layer in sorted(set(layers)) if not 1 <= layer <= n_blocks]
    if missing or not layers:
        raise BadInputError(
            f"{name}: layers {missing or '(none)'}: the model has layers 1 to {n_blocks}: name some of these"
        )


def ldifs_layers(settings: "LdifsSettings", n_blocks: int) -> tuple[int, ...]:
    """The rows of `hidden_states` that ldifs looks at; raises BadInputError when the model lacks one, or none is
    left."""
    if settings.layers is not None:
        check_layers(settings.layers, n_blocks, settings.name)
        return settings.layers
    layers = tuple(range(settings.every, n_blocks + 1, settings.every))
    if not layers:
        raise BadInputError(
            f"ldifs: every {settings.every}th of {n_blocks} layers is none; lower `every`, or name layers (--defenses "
            "FILE)"
        )
    return layers


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
