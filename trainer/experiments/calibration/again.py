"""Scoring rows of a pool again: are the folders given here the very models that scored it?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.corpus.manifest import Scorer
from curator.errors import BadInputError
from curator.query.scorers import ResolvedScorers
from curator.render import Renderer
from curator.scoring.identity import Measure, adapter_sha256, model_identity, scorer_id

Named = tuple[str, Path]  # a misaligned scorer's label, id or id prefix, and the adapter folder for it


@dataclass(frozen=True)
class Again:
    """The aligned model's folder and an adapter folder for each misaligned scorer, as requested."""

    n_rows: int
    model: Path
    adapters: Sequence[Named] = ()


# What an identity says beside weights and measure: that the engine's operator declared them, that adapters were merged.
_AS_RECORDED = ("declared", "adapter_mode")


def adapters_of(again: Again, resolved: ResolvedScorers, renderer: Renderer) -> dict[str, Path | None]:
    """Scorer id -> adapter folder (None: the model alone), the aligned scorer first.

    The engine may be any: the plain reference scores again, and what must be the same is what both run.
    They are matched by content: raises BadInputError, naming what differs, for a folder that is not the scorer it is
    given for, and for a misaligned scorer without a folder. Two scorers of one label are distinguished by their ids.
    """
    assert resolved.aligned is not None
    said = resolved.aligned.identity
    settings = ("mask_rule", "max_length", "dtype", "engine", "engine_version")
    measure = Measure(renderer, *(said[name] for name in settings))
    recorded = {name: said[name] for name in _AS_RECORDED if name in said}
    here = model_identity(again.model, None, measure) | recorded
    _refuse("--model", [resolved.aligned], here)
    found: dict[str, Path | None] = {resolved.aligned.scorer_id: None}
    for name, folder in again.adapters:
        named = [item for item in resolved.misaligned if item.label == name or item.scorer_id.startswith(name)]
        if not named:
            known = ", ".join(item.shown for item in resolved.misaligned)
            raise BadInputError(f"--adapter {name}: no misaligned scorer has that label or id; there are: {known}")
        match = _refuse(f"--adapter {name}", named, here | {"adapter_sha256": adapter_sha256(folder)})
        found[match.scorer_id] = folder
    absent = [item.shown for item in resolved.misaligned if item.scorer_id not in found]
    if absent:
        raise BadInputError(f"scoring rows again needs --adapter NAME=DIR for {', '.join(absent)}")
    return found


def _refuse(option: str, scorers: Sequence[Scorer], here: Mapping[str, Any]) -> Scorer:
    """The scorer that this identity is; raises BadInputError when it is none of them."""
    for scorer in scorers:
        if scorer_id(here) == scorer.scorer_id:
            return scorer
    said = scorers[0].identity
    fields = [name for name in (*said, *(here.keys() - said.keys())) if said.get(name) != here.get(name)]
    reported = "; ".join(
        f"{name} is {_short(here.get(name))} here and {_short(said.get(name))} there" for name in fields
    )
    shown = " or ".join(item.shown for item in scorers)
    raise BadInputError(f"{option} is not what scored the corpus as {shown}: {reported or 'its id says otherwise'}")


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
