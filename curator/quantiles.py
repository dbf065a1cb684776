"""Quantiles of a pool's score for the receipt: those of all candidates are kept beside the wide table.

They need the score of every row, which nothing else of a mix from the top does.
"""

import hashlib
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import ValidationError

from curator.errors import StoreError
from curator.receipt import Quantiles
from curator.resolve import PoolData
from curator.storage import writing_whole
from curator.wide import Choice

_QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def quantiles(score: npt.NDArray[np.float64]) -> Quantiles | None:
    """Quantiles over the rows that have a score; None where no row has."""
    known = score[~np.isnan(score)]
    if not len(known):
        return None
    values = np.quantile(known, list(_QUANTILES.values()), method="inverted_cdf").tolist()
    return Quantiles(n=len(known), **dict(zip(_QUANTILES, values, strict=True)))


def kept_quantiles(data: PoolData) -> Quantiles | None:
    """Quantiles over all candidates of a pool."""
    if data.kept.folder is None:
        return quantiles(data.candidates.scores.every)
    path = data.kept.folder / f"quantiles-{_name(data.choice)}.json"
    with suppress(OSError, orjson.JSONDecodeError, ValidationError):
        held = orjson.loads(path.read_bytes())
        return None if held is None else Quantiles.model_validate(held)
    found = quantiles(data.candidates.scores.every)
    with suppress(StoreError), writing_whole(path) as file:  # a store that cannot be written computes them each time
        file.write(orjson.dumps(None if found is None else found.model_dump()))
    return found


def _name(choice: Choice) -> str:
    """The gap's name in a file name; members are told by their place, which the folder's key fixes."""
    spec = choice.spec
    text = orjson.dumps([choice.name, choice.misaligned, choice.benign, spec.eps, spec.reducer, spec.weights])
    return hashlib.blake2b(text, digest_size=8).hexdigest()
